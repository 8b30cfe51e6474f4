#include "fulgur/base/system_memory.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

namespace fulgur {
namespace fs = std::filesystem;
namespace {

// The number behind `key` in a file of lines "key number"; -1: none.
int64_t number_behind(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(key)) return std::atoll(line.c_str() + key.size());
  return -1;
}

// The least limit from a group up to the root; files say "max", or a number near 2^63, where there is none.
int64_t least_limit(const fs::path& root, std::string group, const char* name) {
  int64_t least = std::numeric_limits<int64_t>::max();
  for (;; group = fs::path(group).parent_path().string()) {
    std::ifstream file(root.string() + (group == "/" ? "" : group) + "/" + name);
    if (int64_t limit; file >> limit) least = std::min(least, limit);
    if (group.size() <= 1) return least;
  }
}

}  // namespace

int64_t available_memory() {
  int64_t bytes = std::numeric_limits<int64_t>::max();
  if (int64_t available = number_behind("/proc/meminfo", "MemAvailable:"); available >= 0) bytes = available * 1024;
  std::ifstream groups("/proc/self/cgroup");  // "4:memory:/path", or "0::/path" of version 2
  for (std::string line; std::getline(groups, line);) {
    auto first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    auto controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
    if (controllers.empty())
      for (const char* root : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"})
        bytes = std::min(bytes, least_limit(root, group, "memory.max"));
    if (controllers == "memory") bytes = std::min(bytes, least_limit("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes"));
  }
  return bytes;
}

int64_t disk_bytes_read() { return number_behind("/proc/self/io", "read_bytes:"); }

}  // namespace fulgur
