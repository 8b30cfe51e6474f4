// The system calls through which files and folders are written: the one seam where tests fill a disk, fail an fsync or
// kill the process between two calls. Everything else calls the functions of file.h.
#pragma once

#include <sys/types.h>

namespace fulgur {

struct SystemCalls {
  int (*open)(const char* path, int flags, mode_t mode);
  ssize_t (*write)(int fd, const void* data, size_t size);
  int (*fsync)(int fd);
  int (*close)(int fd);
  int (*rename)(const char* from, const char* to);
  int (*mkdir)(const char* path, mode_t mode);
};

// The process's table; the kernel's calls unless a test changed it. Not thread-safe to change.
SystemCalls& system_calls();

}  // namespace fulgur
