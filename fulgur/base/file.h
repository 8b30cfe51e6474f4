// Files: whole reads, memory maps, and writes that are either complete or absent (temp + fsync + rename). Every failure
// throws InputError with the path, what could not be done, and the system's reason.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace fulgur {

std::string read_file(const std::filesystem::path& path);

// Size and CRC-32 (zlib's) of a file's bytes.
struct FileSum {
  uint64_t bytes = 0;
  uint32_t crc32 = 0;
  bool operator==(const FileSum&) const = default;
  void add(const void* data, size_t size);
};
FileSum sum_file(const std::filesystem::path& path);

// Writes to "<path>.tmp", fsyncs, renames over `path`, fsyncs the folder. On failure removes the temporary file and
// throws; `path` keeps what it held before.
FileSum write_file_atomic(const std::filesystem::path& path, std::string_view bytes);
// The same for content too large for one string: `fill` calls write(data, size) as often as it likes.
using WriteBytes = std::function<void(const void* data, size_t size)>;
FileSum write_file_atomic(const std::filesystem::path& path, const std::function<void(const WriteBytes&)>& fill);

// Folders that appear whole: make an empty one, fill it, move it over the place of an old one. A crash in between leaves
// the old one, or none and both beside their place, never a mixture.
void make_empty_folder(const std::filesystem::path& folder);
void move_folder(const std::filesystem::path& from, const std::filesystem::path& to);

// A file that grows by whole lines. Not thread-safe.
class AppendFile {
 public:
  explicit AppendFile(const std::filesystem::path& path);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  void write(std::string_view bytes);
  void sync();

 private:
  std::filesystem::path path_;
  int fd_;
};

// A read-only memory map of a whole file; an empty file maps to an empty span. Movable, not copyable.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fulgur
