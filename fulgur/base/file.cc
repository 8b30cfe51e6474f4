#include "fulgur/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const char* action) {
  throw InputError(cat("[file] ", path.string(), ": cannot ", action, ": ", std::strerror(errno)));
}

// Closes on scope exit; the success path closes by hand, because close() itself can report a full disk.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

int open_to_read(const std::filesystem::path& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path, "open");
  struct stat info;
  if (::fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
    ::close(fd);
    throw InputError(cat("[file] ", path.string(), ": expected a file, got a folder"));
  }
  return fd;
}

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  Descriptor file{open_to_read(path)};
  std::string bytes;
  char block[1 << 16];
  for (;;) {
    ssize_t got = ::read(file.fd, block, sizeof block);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path, "read");
    if (got == 0) return bytes;
    bytes.append(block, got);
  }
}

void write_file_atomic(const std::filesystem::path& path, std::string_view bytes) {
  write_file_atomic(path, [&](const WriteBytes& write) { write(bytes.data(), bytes.size()); });
}

void write_file_atomic(const std::filesystem::path& path, const std::function<void(const WriteBytes&)>& fill) {
  auto temporary = path;
  temporary += ".tmp";
  Descriptor file{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
  if (file.fd < 0) fail(temporary, "create");
  try {
    fill([&](const void* data, size_t size) {
      auto* at = static_cast<const char*>(data);
      while (size > 0) {
        ssize_t put = ::write(file.fd, at, size);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) fail(temporary, "write");
        at += put;
        size -= put;
      }
    });
    if (::fsync(file.fd) != 0) fail(temporary, "fsync");
    if (::close(std::exchange(file.fd, -1)) != 0) fail(temporary, "close");
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail(path, "rename into place");
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  Descriptor directory{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (directory.fd >= 0) ::fsync(directory.fd);
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  Descriptor file{open_to_read(path)};
  struct stat info;
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
