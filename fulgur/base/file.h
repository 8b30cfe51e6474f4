// Files: whole reads, memory maps, and writes that are either complete or absent (temp + fsync + rename).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace fulgur {

// Throws InputError naming the path.
std::string read_file(const std::filesystem::path& path);

// Writes to "<path>.tmp", fsyncs, renames over `path`, fsyncs the folder. On failure removes the temporary file and
// throws InputError; `path` keeps what it held before.
void write_file_atomic(const std::filesystem::path& path, std::string_view bytes);
// The same for content too large for one string: `fill` calls write(data, size) as often as it likes.
using WriteBytes = std::function<void(const void* data, size_t size)>;
void write_file_atomic(const std::filesystem::path& path, const std::function<void(const WriteBytes&)>& fill);

// A read-only memory map of a whole file; an empty file maps to an empty span. Movable, not copyable.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fulgur
