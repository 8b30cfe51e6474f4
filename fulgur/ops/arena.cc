#include "fulgur/ops/arena.h"

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <set>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

constexpr int64_t kAlign = 64, kHeader = 64;  // the size of a block stands before it
constexpr int64_t kSmall = 4096;              // smaller tensors are malloc's business
constexpr int64_t kGrow = int64_t(32) << 20;  // bytes of address space made usable at once
constexpr int64_t kHugePage = int64_t(2) << 20;

// One range of addresses; free blocks by place, to join neighbours, and by size, to find the smallest that fits.
class Arena : public c10::Allocator {
 public:
  bool reserve() {
    size_ = 4 * int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
    void* base = mmap(nullptr, size_ + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return false;
    base_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(base) + kHugePage - 1) / kHugePage * kHugePage);
    return true;
  }

  c10::DataPtr allocate(size_t bytes) override {
    int64_t block = arena_block(int64_t(bytes));
    void* data = block > 0 ? take(block) : std::aligned_alloc(kAlign, std::max<size_t>(kAlign, (bytes + 63) / 64 * 64));
    FULGUR_CHECK(data, "[memory] expected ", bytes, " bytes for a tensor, got none from the system",
                 "\n  hint: a smaller batch (micro_tokens), context or model; `fulgur inspect --plan` says what a step needs");
    return {data, data, &give_back, at::Device(at::kCPU)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }

  ArenaUse use() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {used_, peak_, top_};
  }
  void reset_peak() {
    std::lock_guard<std::mutex> lock(mutex_);
    peak_ = used_;
  }

 private:
  static void give_back(void* data);

  bool contains(void* data) const { return data >= base_ && data < base_ + size_; }

  void* take(int64_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    int64_t at = top_;
    auto fits = by_size_.lower_bound({size, 0});
    if (fits != by_size_.end()) {
      auto [found, place] = *fits;
      forget(place, found);
      if (found > size) remember(place + size, found - size);
      at = place;
    } else if (!grow(size)) {
      return nullptr;
    }
    used_ += size;
    peak_ = std::max(peak_, used_);
    std::memcpy(base_ + at, &size, sizeof size);
    return base_ + at + kHeader;
  }

  bool grow(int64_t size) {
    if (top_ + size > size_) return false;
    if (top_ + size > usable_) {
      int64_t more = std::min(size_ - usable_, (top_ + size - usable_ + kGrow - 1) / kGrow * kGrow);
      if (mprotect(base_ + usable_, more, PROT_READ | PROT_WRITE) != 0) return false;
      madvise(base_ + usable_, more, MADV_HUGEPAGE);  // a wish
      usable_ += more;
    }
    top_ += size;
    return true;
  }

  void put(void* data) {
    std::lock_guard<std::mutex> lock(mutex_);
    int64_t at = static_cast<char*>(data) - kHeader - base_, size;
    std::memcpy(&size, base_ + at, sizeof size);
    used_ -= size;
    auto next = by_place_.lower_bound(at);
    if (next != by_place_.end() && next->first == at + size) {
      size += next->second;
      forget(next->first, next->second);
    }
    auto before = by_place_.lower_bound(at);
    if (before != by_place_.begin() && std::prev(before)->first + std::prev(before)->second == at) {
      auto [place, length] = *std::prev(before);
      forget(place, length);
      at = place, size += length;
    }
    remember(at, size);
  }

  void remember(int64_t at, int64_t size) { by_place_[at] = size, by_size_.insert({size, at}); }
  void forget(int64_t at, int64_t size) { by_place_.erase(at), by_size_.erase({size, at}); }

  std::mutex mutex_;
  char* base_ = nullptr;
  int64_t size_ = 0, usable_ = 0, top_ = 0, used_ = 0, peak_ = 0;
  std::map<int64_t, int64_t> by_place_;
  std::set<std::pair<int64_t, int64_t>> by_size_;
};

Arena* g_arena = nullptr;  // never destroyed: tensors outlive main

void Arena::give_back(void* data) {
  if (g_arena->contains(data)) g_arena->put(data);
  else std::free(data);
}

}  // namespace

bool install_arena() {
#ifdef __SANITIZE_ADDRESS__
  return false;  // it watches malloc's blocks, and could not see into these
#endif
  if (g_arena) return true;
  auto* arena = new Arena;
  if (!arena->reserve()) {
    delete arena;
    return false;
  }
  g_arena = arena;
  c10::SetCPUAllocator(arena);
  return true;
}

int64_t arena_block(int64_t bytes) { return bytes < kSmall ? 0 : (bytes + kHeader + kAlign - 1) / kAlign * kAlign; }

ArenaUse arena_use() { return g_arena ? g_arena->use() : ArenaUse{}; }
void reset_arena_peak() {
  if (g_arena) g_arena->reset_peak();
}

}  // namespace fulgur
