#include "fulgur/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fulgur/base/error.h"
#include "fulgur/base/system_calls.h"

namespace fulgur {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void fail(const fs::path& path, const char* action) {
  int error = errno;
  const char* hint = error == ENOSPC || error == EDQUOT || error == EFBIG  ? "the disk or a quota is full; make room and go on"
                     : error == EROFS || error == EACCES || error == EPERM ? "this folder may not be written; give another --out"
                     : error == EIO || error == ESTALE || error == ENODEV
                         ? "the disk or mount is failing; check it before going on"
                         : "";
  throw InputError(cat("[file] ", path.string(), ": cannot ", action, ": ", std::strerror(error)), hint);
}

int system_open(const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); }

// Closes on scope exit; the success path closes by hand, because close() itself can report a full disk.
struct Descriptor {
  explicit Descriptor(int opened) : fd(opened) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  int fd;
};

int open_to_read(const fs::path& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path, "open");
  struct stat info = {};
  if (::fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
    ::close(fd);
    throw InputError(cat("[file] ", path.string(), ": expected a file, got a folder"));
  }
  return fd;
}

// Calls take(data, size) for the whole file, block by block.
template <class Take>
void read_blocks(const fs::path& path, const Take& take) {
  Descriptor file{open_to_read(path)};
  constexpr size_t kBlock = 1 << 18;
  auto block = std::make_unique_for_overwrite<char[]>(kBlock);
  for (;;) {
    ssize_t got = ::read(file.fd, block.get(), kBlock);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path, "read");
    if (got == 0) return;
    take(block.get(), size_t(got));
  }
}

// A write may take less than it was given, and still be told why only the next time.
void write_all(int fd, const void* data, size_t size, const fs::path& path) {
  auto* at = static_cast<const char*>(data);
  while (size > 0) {
    ssize_t put = system_calls().write(fd, at, size);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail(path, "write");
    at += put;
    size -= size_t(put);
  }
}

// Makes the names in a folder durable. Some file systems cannot sync a folder (EINVAL) and need not.
void sync_folder(const fs::path& given) {
  fs::path folder = given.empty() ? fs::path(".") : given;
  Descriptor directory{system_calls().open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0)};
  if (directory.fd < 0) fail(folder, "open");
  if (system_calls().fsync(directory.fd) != 0 && errno != EINVAL) fail(folder, "fsync");
}

}  // namespace

SystemCalls& system_calls() {
  static SystemCalls calls{system_open, ::write, ::fsync, ::close, ::rename, ::mkdir};
  return calls;
}

std::string read_file(const fs::path& path) {
  std::string bytes;
  read_blocks(path, [&](const char* data, size_t size) { bytes.append(data, size); });
  return bytes;
}

void FileSum::add(const void* data, size_t size) {
  auto* at = static_cast<const unsigned char*>(data);
  bytes += size;
  for (size_t done = 0; done < size;) {  // zlib counts in 32 bits
    size_t block = std::min<size_t>(size - done, 1u << 30);
    crc32 = uint32_t(::crc32(crc32, at + done, uInt(block)));
    done += block;
  }
}

FileSum sum_file(const fs::path& path) {
  FileSum sum;
  read_blocks(path, [&](const char* data, size_t size) { sum.add(data, size); });
  return sum;
}

FileSum write_file_atomic(const fs::path& path, std::string_view bytes) {
  return write_file_atomic(path, [&](const WriteBytes& write) { write(bytes.data(), bytes.size()); });
}

FileSum write_file_atomic(const fs::path& path, const std::function<void(const WriteBytes&)>& fill) {
  const SystemCalls& system = system_calls();
  auto temporary = path;
  temporary += ".tmp";
  FileSum sum;
  Descriptor file{system.open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
  if (file.fd < 0) fail(temporary, "create");
  try {
    fill([&](const void* data, size_t size) {
      write_all(file.fd, data, size, temporary);
      sum.add(data, size);
    });
    if (system.fsync(file.fd) != 0) fail(temporary, "fsync");
    if (system.close(std::exchange(file.fd, -1)) != 0) fail(temporary, "close");
    if (system.rename(temporary.c_str(), path.c_str()) != 0) fail(path, "rename into place");
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_folder(path.parent_path());
  return sum;
}

void make_empty_folder(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) throw InputError(cat("[file] ", folder.string(), ": cannot remove: ", error.message()));
  if (system_calls().mkdir(folder.c_str(), 0755) != 0) fail(folder, "make folder");
}

void move_folder(const fs::path& from, const fs::path& to) {
  sync_folder(from);
  fs::path old;
  if (fs::exists(to)) {
    old = to.string() + ".old.tmp";
    std::error_code ignored;
    fs::remove_all(old, ignored);
    if (system_calls().rename(to.c_str(), old.c_str()) != 0) fail(to, "move aside");
  }
  if (system_calls().rename(from.c_str(), to.c_str()) != 0) fail(to, "rename into place");
  sync_folder(to.parent_path());
  std::error_code ignored;
  if (!old.empty()) fs::remove_all(old, ignored);
}

AppendFile::AppendFile(const fs::path& path)
    : path_(path),
      fd_(system_calls().open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
  if (fd_ < 0) fail(path, "open");
}

AppendFile::~AppendFile() { ::close(fd_); }

void AppendFile::write(std::string_view bytes) { write_all(fd_, bytes.data(), bytes.size(), path_); }

void AppendFile::sync() {
  if (system_calls().fsync(fd_) != 0) fail(path_, "fsync");
}

MappedFile::MappedFile(const fs::path& path) {
  Descriptor file{open_to_read(path)};
  struct stat info = {};
  if (::fstat(file.fd, &info) != 0) fail(path, "stat");
  size_ = info.st_size;
  if (size_ == 0) return;
  data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data_ == MAP_FAILED) {
    data_ = nullptr;
    fail(path, "map");
  }
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace fulgur
