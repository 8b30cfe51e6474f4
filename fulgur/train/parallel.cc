#include "fulgur/train/parallel.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;
using c10::intrusive_ptr;

constexpr double kBeatSeconds = 0.5;
constexpr double kSuspectSeconds = 2;                        // of silence that are enough once a collective has failed
constexpr auto kCollectiveTimeout = std::chrono::hours(24);  // silence is noticed by the heartbeat, a hang by the watchdog

std::vector<uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }
std::string text_of(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

intrusive_ptr<c10d::Store> connect(const Launch& launch, bool serve, double seconds) {
  c10d::TCPStoreOptions options;
  options.port = uint16_t(launch.port);
  options.isServer = serve;
  options.waitWorkers = false;
  options.timeout = std::chrono::milliseconds(int64_t(seconds * 1000));
  return c10::make_intrusive<c10d::PrefixStore>("fulgur/" + launch.attempt,
                                                c10::make_intrusive<c10d::TCPStore>(launch.host, options));
}

std::string own_name(const Launch& launch) {
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  return cat("rank ", launch.rank, " of ", launch.size, " (", host, ", process ", getpid(), ")");
}

// Says every half second that this rank lives, and watches the next one. Whoever finds its neighbour silent tells all.
class Heartbeat {
 public:
  Heartbeat(const Launch& launch, std::vector<std::string> names, double silence_seconds)
      : launch_(launch),
        names_(std::move(names)),
        silence_(silence_seconds),
        store_(connect(launch, /*serve=*/false, silence_seconds)),
        thread_([this] { run(); }) {}
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  ~Heartbeat() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // Who is gone, as far as it shows within the time of silence; empty when nobody is.
  std::string wait_for_loss() {
    std::unique_lock lock(mutex_);
    silence_ = std::min(silence_, kSuspectSeconds);
    changed_.wait_for(lock, Seconds(silence_ + 3), [this] { return !loss_.empty(); });
    heard_ = true;
    return loss_;
  }

 private:
  void run() {
    int next = (launch_.rank + 1) % launch_.size;
    std::string seen;
    auto seen_at = Clock::now();
    for (int64_t beat = 0; !wait(kBeatSeconds); ++beat) {
      std::string loss;
      try {
        store_->set(cat("alive/", launch_.rank), bytes_of(cat(beat)));
        if (store_->check({"lost"})) loss = text_of(store_->get("lost"));
        std::string now = store_->check({cat("alive/", next)}) ? text_of(store_->get(cat("alive/", next))) : "";
        if (now != seen) seen = now, seen_at = Clock::now();
        double silent = Seconds(Clock::now() - seen_at).count();
        if (loss.empty() && now != "done" && silent > silence()) {
          loss = cat("[parallel] ", names_[next], ": expected a sign of life, got none for ", int(silent * 10) / 10.0, " s");
          store_->set("lost", bytes_of(loss));
        }
      } catch (const std::exception& error) {
        if (wait(2)) return;  // the end of the run: rank 0 took the store with it
        loss = cat("[parallel] ", launch_.agent_store ? "the launcher" : names_[0],
                   ": expected its store to answer, got: ", first_line(error.what()));
      }
      if (!loss.empty()) return report(loss);
    }
    try {
      store_->set(cat("alive/", launch_.rank), bytes_of("done"));
    } catch (const std::exception&) {  // nobody is left to be told
    }
  }

  double silence() {
    std::lock_guard lock(mutex_);
    return silence_;
  }

  static std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

  // True when the group is being left.
  bool wait(double seconds) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, Seconds(seconds), [this] { return stop_; });
  }

  // The main thread hears of it from its collective; when it is stuck in one, this thread ends the process.
  void report(const std::string& loss) {
    std::unique_lock lock(mutex_);
    loss_ = loss;
    changed_.notify_all();
    if (changed_.wait_for(lock, Seconds(3), [this] { return stop_ || heard_; })) return;
    std::fprintf(stderr, "\n%s\n  hint: --resume goes on from the last checkpoint\n", loss.c_str());
    _exit(1);
  }

  Launch launch_;
  std::vector<std::string> names_;
  double silence_;
  intrusive_ptr<c10d::Store> store_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false, heard_ = false;
  std::string loss_;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace

struct ProcessGroup::Impl {
  Launch launch;
  intrusive_ptr<c10d::Store> store;
  intrusive_ptr<c10d::Backend> backend;
  std::vector<std::string> names;
  std::unique_ptr<Heartbeat> heartbeat;

  // Runs a collective; where it fails, says who is missing.
  void wait(const std::function<intrusive_ptr<c10d::Work>()>& collective) {
    std::string problem;
    try {
      collective()->wait(kCollectiveTimeout);
      return;
    } catch (const std::exception& error) {
      problem = error.what();
    }
    auto loss = heartbeat ? heartbeat->wait_for_loss() : "";
    if (loss.empty())
      loss = cat("[parallel] expected all ", launch.size, " ranks to answer, got: ", problem.substr(0, problem.find('\n')));
    throw InputError(loss, "--resume goes on from the last checkpoint");
  }
};

ProcessGroup::ProcessGroup() : impl_(std::make_unique<Impl>()) { impl_->names = {own_name(impl_->launch)}; }

ProcessGroup::ProcessGroup(const Launch& launch, double silence_seconds, double meet_seconds) : ProcessGroup() {
  impl_->launch = launch;
  if (launch.size == 1) return;
  try {
    impl_->store = connect(launch, launch.rank == 0 && !launch.agent_store, meet_seconds);
    auto meet = std::chrono::milliseconds(int64_t(meet_seconds * 1000));
    auto options = c10d::ProcessGroupGloo::Options::create(meet);
    const char* interface = getenv("GLOO_SOCKET_IFNAME");
    bool local = launch.local_size == launch.size;
    options->devices.push_back(interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                               : local   ? c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")
                                         : c10d::ProcessGroupGloo::createDefaultDevice());
    options->threads = 1;  // one collective at a time
    auto gloo_store = c10::make_intrusive<c10d::PrefixStore>("gloo", impl_->store);
    impl_->backend = c10::make_intrusive<c10d::ProcessGroupGloo>(gloo_store, launch.rank, launch.size, options);
    impl_->backend->setTimeout(kCollectiveTimeout);
  } catch (const std::exception& error) {
    std::string problem = error.what();
    throw InputError(cat("[parallel] rank ", launch.rank, ": expected ", launch.size, " ranks to meet at ", launch.host, ":",
                         launch.port, ", got: ", problem.substr(0, problem.find('\n'))),
                     "do all ranks run, with the same MASTER_ADDR and MASTER_PORT?");
  }
  impl_->names = gather(own_name(launch));
  impl_->heartbeat = std::make_unique<Heartbeat>(launch, impl_->names, silence_seconds);
}

ProcessGroup::~ProcessGroup() = default;

int ProcessGroup::rank() const { return impl_->launch.rank; }
int ProcessGroup::size() const { return impl_->launch.size; }
std::string ProcessGroup::name(int rank) const { return impl_->names.at(rank); }

void ProcessGroup::leave(const std::string& reason) {
  if (!impl_->store) return;
  try {
    impl_->store->set("lost", bytes_of(cat("[parallel] ", impl_->names[rank()], " ended: ", reason)));
  } catch (const std::exception&) {  // the store went first; the others know already
  }
}

void ProcessGroup::sum(const std::vector<at::Tensor>& tensors) {
  if (size() == 1 || tensors.empty()) return;
  constexpr int64_t kBucket = 16 << 20;  // values; bounds the memory this takes
  int64_t W = size();
  for (size_t first = 0, last; first < tensors.size(); first = last) {
    int64_t total = 0;
    for (last = first; last < tensors.size() && (last == first || total + tensors[last].numel() <= kBucket); ++last)
      total += tensors[last].numel();
    int64_t slice = (total + W - 1) / W;
    at::Tensor all = at::zeros({W * slice}, at::kFloat), received = at::empty_like(all);
    float* at = all.mutable_data_ptr<float>();
    for (size_t i = first; i < last; at += tensors[i++].numel())
      std::memcpy(at, tensors[i].const_data_ptr<float>(), tensors[i].numel() * sizeof(float));
    std::vector<int64_t> equal;
    impl_->wait([&] { return impl_->backend->alltoall_base(received, all, equal, equal); });
    TreeSum tree;
    for (int64_t r = 0; r < W; ++r) tree.add({received.narrow(0, r * slice, slice)});
    at::Tensor mine = tree.take()[0];
    impl_->wait([&] { return impl_->backend->_allgather_base(all, mine); });
    at = all.mutable_data_ptr<float>();
    for (size_t i = first; i < last; at += tensors[i++].numel())
      std::memcpy(tensors[i].mutable_data_ptr<float>(), at, tensors[i].numel() * sizeof(float));
  }
}

std::vector<std::string> ProcessGroup::gather(const std::string& text) {
  if (size() == 1) return {text};
  at::Tensor length = at::full({1}, int64_t(text.size()), at::kLong), lengths = at::empty({size()}, at::kLong);
  impl_->wait([&] { return impl_->backend->_allgather_base(lengths, length); });
  int64_t longest = std::max<int64_t>(1, lengths.max().item<int64_t>());
  at::Tensor mine = at::zeros({longest}, at::kByte), all = at::empty({size() * longest}, at::kByte);
  std::memcpy(mine.mutable_data_ptr(), text.data(), text.size());
  impl_->wait([&] { return impl_->backend->_allgather_base(all, mine); });
  std::vector<std::string> out;
  for (int64_t r = 0; r < size(); ++r)
    out.emplace_back(reinterpret_cast<const char*>(all.const_data_ptr<uint8_t>()) + r * longest, lengths[r].item<int64_t>());
  return out;
}

std::vector<std::vector<double>> ProcessGroup::gather(const std::vector<double>& values) {
  std::string bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
  std::vector<std::vector<double>> out;
  for (const auto& theirs : gather(bytes)) {
    out.emplace_back(theirs.size() / sizeof(double));
    std::memcpy(out.back().data(), theirs.data(), theirs.size());
  }
  return out;
}

std::string ProcessGroup::from_leader(const std::string& text) { return gather(leads() ? text : std::string())[0]; }

void TreeSum::merge_last_two() {
  auto right = std::move(partials_.back());
  partials_.pop_back();
  auto& left = partials_.back();
  left.parts += right.parts;
  for (size_t i = 0; i < left.sum.size(); ++i) {
    if (!left.sum[i].defined()) left.sum[i] = right.sum[i];
    else if (right.sum[i].defined()) left.sum[i].add_(right.sum[i]);
  }
}

void TreeSum::add(std::vector<at::Tensor> part) {
  partials_.push_back({1, std::move(part)});
  while (partials_.size() > 1 && partials_[partials_.size() - 2].parts == partials_.back().parts) merge_last_two();
}

std::vector<at::Tensor> TreeSum::take() {
  while (partials_.size() > 1) merge_last_two();
  auto sum = std::move(partials_.back().sum);
  partials_.clear();
  return sum;
}

}  // namespace fulgur
