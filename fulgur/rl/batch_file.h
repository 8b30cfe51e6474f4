// Members in a file, so that a run can go on with them, or train on them again: safetensors of their numbers, one segment behind
// another, and under "members" one JSON line each of what they said.
#pragma once

#include <filesystem>
#include <vector>

#include "fulgur/base/file.h"
#include "fulgur/model/config.h"
#include "fulgur/rl/rollout.h"

namespace fulgur {

// Atomic; the bytes depend on the members alone. `proximal` is not kept.
FileSum write_batch(const std::filesystem::path& path, const std::vector<const Member*>& members);

// Throws InputError with the path when it holds no batch, or one that `config` cannot have drawn: ids and choices out of range.
std::vector<Member> read_batch(const std::filesystem::path& path, const ModelConfig& config);

}  // namespace fulgur
