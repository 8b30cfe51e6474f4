// Any OpenAI-compatible endpoint of chat completions, asked until it gives an answer that can be used.
#pragma once

#include <functional>
#include <string>

#include "fulgur/rl/rewards/reward.h"

namespace fulgur {

struct EndpointOptions {
  std::string base_url = {};  // before /chat/completions: "http://127.0.0.1:8000/v1"; http or https
  std::string model = {};
  std::string api_key_variable = {};  // of the environment, sent as a bearer token; empty: none. The key itself is kept nowhere
  Json fields = Json::object();       // more of the request: max_tokens, response_format, ...
  int64_t attempts = 5;
  double connect_seconds = 10, attempt_seconds = 120;  // the longest one attempt takes
  double total_seconds = 300;                          // and all of them with their waits
  double first_wait = 1, longest_wait = 30;            // seconds between attempts: doubled each time
  int64_t most_bytes = 4 << 20;                        // of a response
};

// Thread-safe. Proxies are libcurl's: http_proxy, https_proxy, no_proxy. Redirects are not followed.
class ChatEndpoint {
 public:
  // Throws InputError on an option out of range, a base_url of another kind, and a variable that is not set.
  explicit ChatEndpoint(EndpointOptions options);

  // What an answer is worth; throws InputError when nothing can be made of it.
  using Read = std::function<Outcome(const std::string& answer)>;
  // Asks with temperature 0 for the next message and has it read. Asks again after a broken connection, a time-out, 408, 429,
  // 5xx, a response that is none and an answer that cannot be read; waits what Retry-After says if that is longer, but at most
  // longest_wait. Other states (400, 401, 404) will not get better and are not asked again. Then invalid: "endpoint: ...". Its
  // detail gets "prompt", "answer" (the last there was) and "attempts".
  Outcome ask(const Json& messages, const Read& read) const;

 private:
  EndpointOptions options_;
};

}  // namespace fulgur
