// Processes that train one model together, each on its share of every step (data parallel). c10d carries the bytes (Gloo);
// order and meaning are ours: a sum is a balanced tree over the rank numbers, the same bits every time.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace fulgur {

// What a launcher says in the environment: torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), SLURM
// (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID), Open MPI (OMPI_COMM_WORLD_*) or MPICH and Intel MPI (PMI_RANK, PMI_SIZE).
struct Launch {
  int rank = 0, size = 1, local_size = 1;
  std::string host = "127.0.0.1";
  int port = 29500;
  bool agent_store = false;  // torchrun's agent already serves the store
  std::string attempt;       // of an elastic restart: keeps its keys apart from those of the attempt before
};
// `variable` is getenv, or a test's. Throws InputError on numbers that make no sense.
Launch read_launch(const std::function<const char*(const char*)>& variable);

// One rank's view of the group. Collectives must be called by all ranks in the same order, from one thread. A rank that
// dies, hangs or leaves makes every other one's call throw InputError with its name within `silence_seconds`; where the
// caller is stuck in a collective that does not return, the process ends with that message and exit code 1.
class ProcessGroup {
 public:
  ProcessGroup();  // alone: every collective is the identity
  // Waits for all ranks to come, `meet_seconds` at most.
  explicit ProcessGroup(const Launch& launch, double silence_seconds = 10, double meet_seconds = 120);
  ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  int rank() const;
  int size() const;
  bool leads() const { return rank() == 0; }  // the one rank that writes files
  std::string name(int rank) const;           // "rank 1 of 2 (host, process 4711)"

  // Every tensor becomes its sum over ranks: f32, contiguous, the same shapes in the same order at every rank. Moves
  // 2 (W-1)/W of the bytes: each rank gets one slice from all others, adds it up in tree order, and gives it to all.
  void sum(const std::vector<at::Tensor>& tensors);
  std::vector<std::vector<double>> gather(const std::vector<double>& values);  // [rank][i]; any length at a rank
  std::vector<std::string> gather(const std::string& text);
  std::string from_leader(const std::string& text);  // rank 0's, at every rank
  void barrier() { gather(std::string()); }

  // Tells the others why this rank goes away, so that they can say so.
  void leave(const std::string& reason);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Adds up lists of tensors, part 0, 1, 2, ..., as a balanced tree: the largest power of two below n splits n parts. Holds
// log2(n) partial sums. Aligned runs of 2^i parts added up elsewhere, and then added as parts, give the same bits: that is
// why two processes with half of the parts each end with the weights of one process that had them all.
class TreeSum {
 public:
  // An undefined tensor counts as zero. Keeps and changes the tensors it is given.
  void add(std::vector<at::Tensor> part);
  std::vector<at::Tensor> take();  // the sum; the tree is empty again

 private:
  struct Partial {
    int64_t parts;
    std::vector<at::Tensor> sum;
  };
  void merge_last_two();
  std::vector<Partial> partials_;
};

}  // namespace fulgur
