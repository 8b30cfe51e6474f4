#include "fulgur/train/resume.h"

#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/train/checkpoint.h"

namespace fulgur {
namespace fs = std::filesystem;

Start find_start(const fs::path& run, const std::string& stage, const fs::path& model, ProcessGroup& group) {
  std::string found;
  if (group.leads()) {
    fs::create_directories(run / "checkpoints");
    remove_unfinished(run, stage);
    auto newest = newest_checkpoint(run, stage);
    found = newest ? "+" + newest->string() : "-" + find_model(model).string();
  }
  found = group.from_leader(found);
  return {found.substr(1), found[0] == '+'};
}

void check_fact(const fs::path& checkpoint, const std::string& key, const Json& now, const Json& then, bool force, bool leads) {
  if (now == then) return;
  auto text =
      cat("[checkpoint] ", checkpoint.string(), ": ", key, ": expected ", now.dump(), " as in this run, got ", then.dump());
  if (!force)
    throw InputError(text, key == "/numeric_path/isa"
                               ? cat("--isa ", then.get<std::string>(), " goes on as it began; --force accepts another path")
                               : "go on with the same settings and data, or give another --out; --force goes on anyhow");
  if (leads) std::fprintf(stderr, "%s\n  going on: --force\n", text.c_str());
}

fs::path checkpoint_folder(const fs::path& run, const std::string& stage, int64_t step) {
  char name[64];
  std::snprintf(name, sizeof name, "%s-%08lld", stage.c_str(), static_cast<long long>(step));
  return run / "checkpoints" / name;
}

void check_agreement(Weights& weights, int64_t step, ProcessGroup& group) {
  FileSum sum;
  for (const auto& p : parameters(weights)) sum.add(p.tensor->const_data_ptr(), p.tensor->numel() * p.tensor->element_size());
  auto all = group.gather(std::vector<double>{double(sum.crc32)});
  for (int r = 1; r < group.size(); ++r)
    FULGUR_CHECK(all[r] == all[0], "[parallel] step ", step, ": ", group.name(r), ": expected the weights of rank 0 (checksum ",
                 uint32_t(all[0][0]), "), got ", uint32_t(all[r][0]),
                 "\n  hint: do all ranks run the same program on the same kind of processor (--isa)?");
}

bool stop_wanted(bool here, ProcessGroup& group) {
  bool any = false;
  for (const auto& of : group.gather(std::vector<double>{double(here)})) any |= of[0] != 0;
  return any;
}

}  // namespace fulgur
