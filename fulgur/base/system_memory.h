// How much memory this process may have. Linux.
#pragma once

#include <cstdint>

namespace fulgur {

// Bytes free for it: MemAvailable, or less where a control group (v1 or v2, its own or one above) limits it. What a group has in
// use counts as free: most of it is files' pages, which give way.
int64_t available_memory();

// Bytes this process has read from disks, its threads' page faults and read-ahead included.
int64_t disk_bytes_read();

}  // namespace fulgur
