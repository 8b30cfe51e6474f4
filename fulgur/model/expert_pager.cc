#include "fulgur/model/expert_pager.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "fulgur/base/threads.h"

namespace fulgur {
namespace {

struct Range {  // whole pages
  char* begin;
  size_t bytes;
};

Range pages_of(const at::Tensor& stacked, int64_t expert) {
  auto page = uintptr_t(sysconf(_SC_PAGESIZE));
  auto first = reinterpret_cast<uintptr_t>(stacked.const_data_ptr()),
       size = uintptr_t(stacked.stride(0)) * stacked.element_size();
  auto begin = (first + expert * size) / page * page, end = (first + (expert + 1) * size + page - 1) / page * page;
  return {reinterpret_cast<char*>(begin), size_t(end - begin)};
}

bool present(const Range& range) {
  std::vector<unsigned char> in_memory((range.bytes + sysconf(_SC_PAGESIZE) - 1) / sysconf(_SC_PAGESIZE));
  if (mincore(range.begin, range.bytes, in_memory.data()) != 0) return false;
  return std::all_of(in_memory.begin(), in_memory.end(), [](unsigned char page) { return page & 1; });
}

// The kernel cuts one call's read-ahead off at what a disk takes in one request.
void read_ahead(const Range& range) {
  constexpr size_t kPart = 128 << 10;
  for (size_t at = 0; at < range.bytes; at += kPart) madvise(range.begin + at, std::min(kPart, range.bytes - at), MADV_WILLNEED);
}

std::set<int64_t> each_once(const at::Tensor& experts_Nk) {
  auto experts = experts_Nk.contiguous();
  const auto* at = experts.const_data_ptr<int32_t>();
  std::set<int64_t> out(at, at + experts.numel());
  out.erase(-1);
  return out;
}

}  // namespace

struct ExpertPager::State {
  explicit State(const Weights& weights) {
    for (const auto& layer : weights.layers) add(layer);
    if (weights.mtp) add(weights.mtp->layer);
    expected.resize(layers.size());
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    {
      std::lock_guard lock(mutex);
      ends = true;
    }
    wake.notify_one();
    reader.join();
  }

  void add(const LayerWeights& layer) {
    layers.emplace_back();
    if (layer.moe) layers.back() = {layer.moe->gate_proj, layer.moe->up_proj, layer.moe->down_proj};
  }

  template <class Each>
  void for_ranges(int64_t layer, int64_t expert, const Each& each) const {
    for (const auto& stacked : layers[layer]) each(pages_of(stacked, expert));
  }

  void read() {
    for (;;) {
      std::pair<int64_t, std::set<int64_t>> next;
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return ends || wanted; });
        if (ends) return;
        next = *std::exchange(wanted, std::nullopt);
      }
      for (int64_t expert : next.second)
        for_ranges(next.first, expert, [](const Range& range) {
          if (!present(range)) read_ahead(range);
        });
    }
  }

  std::vector<std::vector<at::Tensor>> layers;  // gate, up and down, the experts stacked; none where a layer has no experts
  std::mutex mutex;
  std::condition_variable wake;
  std::optional<std::pair<int64_t, std::set<int64_t>>> wanted;  // the latest; an older one would come too late
  std::vector<std::set<int64_t>> expected;                      // of each layer
  PagerStatistics counted;
  bool ends = false;
  std::thread reader{[this] { read(); }};  // last: it uses all of the above
};

ExpertPager::ExpertPager(const Weights& weights) : state_(std::make_unique<State>(weights)) {}
ExpertPager::~ExpertPager() = default;

void ExpertPager::expect(int64_t layer, const at::Tensor& experts_Nk) {
  auto experts = each_once(experts_Nk);
  {
    std::lock_guard lock(state_->mutex);
    state_->expected[layer] = experts;
    state_->wanted.emplace(layer, std::move(experts));
  }
  state_->wake.notify_one();
}

void ExpertPager::need(int64_t layer, const at::Tensor& experts_Nk) {
  auto experts = each_once(experts_Nk);
  int64_t whole = 0;
  std::vector<Range> missing;
  for (int64_t expert : experts) {
    size_t before = missing.size();
    state_->for_ranges(layer, expert, [&](const Range& range) {
      if (!present(range)) missing.push_back(range);
    });
    whole += missing.size() == before;
  }
  parallel_for(int64_t(missing.size()), [&](int64_t i) { read_ahead(missing[i]); });  // asking takes its time too
  std::lock_guard lock(state_->mutex);
  auto& counted = state_->counted;
  counted.needed += int64_t(experts.size()), counted.present += whole;
  for (int64_t expert : experts) counted.foreseen += state_->expected[layer].contains(expert);
  state_->expected[layer].clear();
}

PagerStatistics ExpertPager::statistics() const {
  std::lock_guard lock(state_->mutex);
  return state_->counted;
}

}  // namespace fulgur
