// Inputs: a batch of rollouts that a run kept.
#include <cstring>

#include "fulgur/rl/batch_file.h"
#include "tests/fuzz/fuzz.h"

using namespace fulgur;

namespace {

// The model of the corpus's files.
ModelConfig small() {
  ModelConfig config;
  config.vocab_size = 32, config.num_hidden_layers = 2, config.first_k_dense_replace = 1;
  config.n_routed_experts = 4, config.num_experts_per_tok = 2, config.index_topk = 3;
  return config;
}

std::vector<const Member*> pointers(const std::vector<Member>& members) {
  std::vector<const Member*> out;
  for (const auto& member : members) out.push_back(&member);
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto path = fuzz::put("in.safetensors", fuzz::view(data, size));
  std::vector<Member> members;
  if (!fuzz::accepts([&] { members = read_batch(path, small()); })) return 0;
  for (const auto& member : members)
    for (const auto& s : member.segments) {
      fuzz::promise(s.kept_offsets.size() == s.drawn.size() + 1 && s.kept_offsets.back() == int(s.kept.size()), "CSR");
      for (auto token : s.tokens) fuzz::promise(token >= 0 && token < 32, "tokens of the vocabulary");
      for (auto at : s.drawn) fuzz::promise(at > 0 && at < int64_t(s.tokens.size()), "drawn tokens have a place");
    }
  auto first = fuzz::folder() / "first.safetensors", second = fuzz::folder() / "second.safetensors";
  write_batch(first, pointers(members));
  write_batch(second, pointers(read_batch(first, small())));
  fuzz::promise(sum_file(first) == sum_file(second), "what is written is what is read");
  return 0;
}

// Three mutations of four stay in the header, and its length follows.
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  uint64_t header = 0;
  if (size >= 8) std::memcpy(&header, data, 8);
  if (seed % 4 != 0 || size < 8 || header > size - 8) return LLVMFuzzerMutate(data, size, max_size);
  size_t body = size - 8 - header;  // the numbers: the header says where each lies, and stays
  LLVMFuzzerMutate(data + 8 + header, body, body);
  return size;
}
