// Three texts at once from one model, as ids: texts CONFIG.json WEIGHTS.safetensors ID...
// The first takes the most likely tokens, the others draw; they share what they begin with.
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "fulgur/engine/engine.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/transformer.h"

int main(int argc, char** argv) try {
  if (argc < 4) return std::fprintf(stderr, "usage: %s CONFIG.json WEIGHTS.safetensors ID...\n", argv[0]), 2;
  auto config = fulgur::read_config(argv[1]);
  fulgur::Transformer model(config, fulgur::import_weights(config, fulgur::read_safetensors(argv[2]), /*share_mtp=*/false));
  fulgur::Engine engine(std::move(model), {.cache_bytes = 16 << 20});

  std::vector<int32_t> prompt;
  for (int i = 3; i < argc; ++i) prompt.push_back(std::atoi(argv[i]));

  std::mutex mutex;
  std::condition_variable ended;
  std::vector<std::vector<int32_t>> texts(3);
  int open = 3;
  for (int i = 0; i < 3; ++i) {
    fulgur::Request request{.prompt = prompt, .max_tokens = 8};
    request.sampling = {.temperature = i == 0 ? 0.0 : 0.8, .top_p = 0.95, .seed = uint64_t(i)};
    engine.submit(request, [&, i](const fulgur::Event& event) {  // on the engine's thread
      std::lock_guard lock(mutex);
      if (event.token) texts[i].push_back(event.token->id);
      if (event.finish && --open == 0) ended.notify_one();
    });
  }
  std::unique_lock lock(mutex);
  ended.wait(lock, [&] { return open == 0; });

  for (const auto& text : texts) {
    for (int32_t id : text) std::printf("%d ", id);
    std::printf("\n");
  }
  auto s = engine.statistics();
  std::printf("%zu texts, %lld tokens in %lld steps\n", texts.size(), (long long)s.generated_tokens, (long long)s.steps);
} catch (const fulgur::InputError& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
