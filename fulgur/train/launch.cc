// The environment variables of launchers.
#include <cstdlib>

#include "fulgur/base/error.h"
#include "fulgur/train/parallel.h"

namespace fulgur {
namespace {

using Variable = std::function<const char*(const char*)>;

// SLURM writes "2(x3)" for two on each of three nodes.
int number(const Variable& variable, const char* name, int otherwise) {
  const char* text = variable(name);
  if (!text || !*text) return otherwise;
  char* end = nullptr;
  long value = std::strtol(text, &end, 10);
  FULGUR_CHECK((*end == 0 || *end == '(') && value >= 0 && value < (1 << 24), "[parallel] ", name, ": expected a number, got \"",
               text, "\"");
  return int(value);
}

// "node[03-07,9],gpu1" -> "node03"
std::string first_host(const std::string& list) {
  auto end = list.find_first_of("[,");
  if (end == std::string::npos || list[end] == ',') return list.substr(0, end);
  auto stop = list.find_first_of("-,]", end);
  return list.substr(0, end) + list.substr(end + 1, stop == std::string::npos ? stop : stop - end - 1);
}

}  // namespace

Launch read_launch(const Variable& variable) {
  struct Names {
    const char *rank, *size, *local_size;
  };
  Launch launch;
  if (const char* nodes = variable("SLURM_STEP_NODELIST")) launch.host = first_host(nodes);
  if (const char* host = variable("MASTER_ADDR")) launch.host = host;
  bool loopback = launch.host == "127.0.0.1" || launch.host == "localhost";
  // SLURM's variables are those of a step (srun): a batch script alone is one process, whatever was allocated.
  for (Names names : {Names{"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"},
                      Names{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"},
                      Names{"PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"},
                      Names{"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"}}) {
    if (!variable(names.rank) || !variable(names.size)) continue;
    launch.rank = number(variable, names.rank, 0), launch.size = number(variable, names.size, 1);
    launch.local_size = number(variable, names.local_size, loopback ? launch.size : 1);
    FULGUR_CHECK(launch.size > 0 && launch.rank < launch.size, "[parallel] ", names.rank, ": expected a rank below ", names.size,
                 " ", launch.size, ", got ", launch.rank);
    break;
  }
  launch.port = number(variable, "MASTER_PORT", 20000 + number(variable, "SLURM_JOB_ID", 9500) % 40000);
  FULGUR_CHECK(launch.port > 0 && launch.port < 65536, "[parallel] MASTER_PORT: expected a port, got ", launch.port);
  const char* agent = variable("TORCHELASTIC_USE_AGENT_STORE");
  launch.agent_store = agent && std::string(agent) == "True";
  launch.attempt = cat(number(variable, "TORCHELASTIC_RESTART_COUNT", 0));
  return launch;
}

}  // namespace fulgur
