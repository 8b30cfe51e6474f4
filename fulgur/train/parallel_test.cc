// Groups of ranks in threads of one process: real stores, real sockets. Whole processes are in cli_test.cc.
#include "fulgur/train/parallel.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <thread>

#include "fulgur/base/error.h"
#include "fulgur/train/stragglers.h"
#include "fulgur/train/watchdog.h"

namespace fulgur {
namespace {

Launch launch_of(std::map<std::string, std::string> variables) {
  return read_launch([&](const char* name) -> const char* {
    auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(Launch, EveryLaunchersVariablesAreUnderstood) {
  auto alone = launch_of({});
  EXPECT_EQ(alone.size, 1);
  auto torchrun = launch_of({{"RANK", "3"},
                             {"WORLD_SIZE", "4"},
                             {"LOCAL_WORLD_SIZE", "2"},
                             {"MASTER_ADDR", "head"},
                             {"MASTER_PORT", "1234"},
                             {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                             {"TORCHELASTIC_RESTART_COUNT", "2"}});
  EXPECT_EQ(torchrun.rank, 3);
  EXPECT_EQ(torchrun.size, 4);
  EXPECT_EQ(torchrun.local_size, 2);
  EXPECT_EQ(torchrun.host, "head");
  EXPECT_EQ(torchrun.port, 1234);
  EXPECT_TRUE(torchrun.agent_store);
  EXPECT_EQ(torchrun.attempt, "2");
  auto slurm = launch_of({{"SLURM_PROCID", "5"},
                          {"SLURM_STEP_NUM_TASKS", "8"},
                          {"SLURM_STEP_TASKS_PER_NODE", "4(x2)"},
                          {"SLURM_STEP_NODELIST", "node[03-04],other"},
                          {"SLURM_JOB_ID", "77"}});
  EXPECT_EQ(slurm.rank, 5);
  EXPECT_EQ(slurm.size, 8);
  EXPECT_EQ(slurm.local_size, 4);
  EXPECT_EQ(slurm.host, "node03");
  EXPECT_EQ(slurm.port, 20077);
  EXPECT_EQ(launch_of({{"SLURM_STEP_NODELIST", "a1,a2"}}).host, "a1");
  EXPECT_EQ(launch_of({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}}).size, 1);  // a batch script, not a step
  auto mpi = launch_of({{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "2"}});
  EXPECT_EQ(mpi.rank, 1);
  EXPECT_EQ(mpi.size, 2);
  EXPECT_EQ(mpi.local_size, 2);
  EXPECT_EQ(launch_of({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}).size, 2);
  EXPECT_THROW(launch_of({{"RANK", "4"}, {"WORLD_SIZE", "4"}}), InputError);
  EXPECT_THROW(launch_of({{"RANK", "one"}, {"WORLD_SIZE", "4"}}), InputError);
}

TEST(TreeSum, AlignedRunsOfPartsAddUpToTheSameBits) {
  at::manual_seed(1);
  for (int64_t n : {1, 2, 3, 5, 6, 8, 16}) {
    std::vector<at::Tensor> parts;
    for (int64_t i = 0; i < n; ++i) parts.push_back(at::randn({1000}) * (i % 3 == 0 ? 1e4 : 1));
    auto sum = [&](int64_t first, int64_t count) {
      TreeSum tree;
      for (int64_t i = first; i < first + count; ++i) tree.add({parts[i].clone(), at::Tensor()});
      return tree.take()[0];
    };
    auto whole = sum(0, n);
    EXPECT_TRUE(at::allclose(whole, at::stack(parts).sum(0), 1e-4, 1e-2));
    for (int64_t run : {1, 2, 4, 8}) {
      if (n % run != 0) continue;
      TreeSum tree;
      for (int64_t first = 0; first < n; first += run) tree.add({sum(first, run), at::Tensor()});
      EXPECT_TRUE(at::equal(tree.take()[0], whole)) << n << " parts in runs of " << run;
    }
  }
}

// A port nobody listens on, a moment ago.
int free_port() {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET, address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  bind(fd, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

void in_ranks(int size, const std::function<void(ProcessGroup&)>& work, double silence = 10) {
  int port = free_port();
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < size; ++rank)
    ranks.emplace_back([&, rank] {
      Launch launch;
      launch.rank = rank, launch.size = launch.local_size = size, launch.port = port, launch.attempt = "0";
      ProcessGroup group(launch, silence);
      work(group);
    });
  for (auto& rank : ranks) rank.join();
}

TEST(ProcessGroup, SumsAreTheTreesBitsAtEveryRank) {
  at::manual_seed(2);
  for (int W : {1, 2, 3, 4}) {
    std::vector<std::vector<at::Tensor>> of_rank(W);
    for (auto& tensors : of_rank) tensors = {at::randn({7, 3}) * 1e3, at::randn({1}), at::randn({100})};
    TreeSum tree;
    for (auto& tensors : of_rank) tree.add({tensors[0].clone(), tensors[1].clone(), tensors[2].clone()});
    auto expected = tree.take();
    in_ranks(W, [&](ProcessGroup& group) {
      group.sum(of_rank[group.rank()]);
      group.barrier();
    });
    for (auto& tensors : of_rank)
      for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(at::equal(tensors[i], expected[i])) << W << " ranks, tensor " << i;
  }
}

TEST(ProcessGroup, EveryRankHearsEveryOtherInOrder) {
  in_ranks(3, [](ProcessGroup& group) {
    EXPECT_EQ(group.gather(std::string(group.rank(), 'x')), (std::vector<std::string>{"", "x", "xx"}));
    std::vector<double> own(group.rank() + 1, 0.5 + group.rank());
    EXPECT_EQ(group.gather(own)[2], (std::vector<double>{2.5, 2.5, 2.5}));
    EXPECT_EQ(group.from_leader(cat("from ", group.rank())), "from 0");
    EXPECT_THAT(group.name(1), testing::HasSubstr("rank 1 of 3 ("));
    group.barrier();
  });
}

TEST(ProcessGroup, ARankThatLeavesIsNamedToTheOthersWithItsReason) {
  in_ranks(2, [](ProcessGroup& group) {
    if (group.rank() == 1) {
      group.leave("[file] disk: cannot write");
      return;
    }
    try {
      for (;;) group.barrier();
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("rank 1 of 2 ("), testing::HasSubstr("ended: [file] disk")));
    }
  });
}

TEST(ProcessGroup, RanksThatDoNotComeAreAnError) {
  Launch launch;
  launch.rank = 1, launch.size = 2, launch.port = free_port();
  EXPECT_THROW(ProcessGroup group(launch, 1, /*meet_seconds=*/1), InputError);
}

TEST(Stragglers, OneSlowRankIsNamedBehindFiveSteps) {
  Stragglers stragglers;
  for (int step = 0; step < 4; ++step) EXPECT_EQ(stragglers.step({1, 1, 3, 1}), -1);
  EXPECT_EQ(stragglers.step({1, 1, 3, 1}), 2);
  EXPECT_EQ(stragglers.step({1, 1, 3, 1}), -1);  // said
  for (int step = 0; step < 20; ++step) EXPECT_EQ(stragglers.step({1, 1, 1.5, 1}), -1);
}

TEST(Watchdog, BarksOnceWhenNoStepComesAndNeverBefore) {
  std::atomic<int> barks{0};
  std::string doing;
  {
    Watchdog watchdog(0.2, [&](const std::string& what, double) { doing = what, ++barks; });
    for (int i = 0; i < 10; ++i) watchdog.alive("step 7"), std::this_thread::sleep_for(std::chrono::milliseconds(40));
    EXPECT_EQ(barks, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }
  EXPECT_EQ(barks, 1);
  EXPECT_EQ(doing, "step 7");
  Watchdog never(0, [&](const std::string&, double) { ++barks; });
}

}  // namespace
}  // namespace fulgur
