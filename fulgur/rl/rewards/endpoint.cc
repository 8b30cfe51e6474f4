#include "fulgur/rl/rewards/endpoint.h"

#include <curl/curl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <thread>

#include "fulgur/base/error.h"
#include "fulgur/base/utf8.h"

namespace fulgur {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

struct Response {
  long status = 0;            // 0: there is none
  double retry_after = 0;     // seconds
  std::string body, failure;  // failure: why there is none
};

using Curl = std::unique_ptr<CURL, void (*)(CURL*)>;
using Headers = std::unique_ptr<curl_slist, void (*)(curl_slist*)>;

Curl new_handle() {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
  Curl curl(started == CURLE_OK ? curl_easy_init() : nullptr, curl_easy_cleanup);
  FULGUR_CHECK(curl, "[rewards] endpoint: expected libcurl to start, got a failure");
  return curl;
}

struct Body {
  std::string bytes;
  size_t most;
};
size_t take_body(char* data, size_t one, size_t size, void* to) {
  auto& body = *static_cast<Body*>(to);
  if (body.bytes.size() + size > body.most) return 0;  // libcurl ends the transfer
  body.bytes.append(data, one * size);
  return size;
}

std::string api_key(const EndpointOptions& options) {
  if (options.api_key_variable.empty()) return "";
  const char* key = std::getenv(options.api_key_variable.c_str());
  return key ? key : "";
}

void add_header(Headers& headers, const std::string& line) {
  auto* longer = curl_slist_append(headers.get(), line.c_str());
  if (!longer) throw std::bad_alloc();
  headers.release();
  headers.reset(longer);
}

Response post(CURL* curl, const EndpointOptions& options, const std::string& request, double seconds) {
  Headers headers(nullptr, curl_slist_free_all);
  add_header(headers, "Content-Type: application/json");
  add_header(headers, "Expect:");  // some servers never answer it
  if (auto key = api_key(options); !key.empty()) add_header(headers, "Authorization: Bearer " + key);
  Body body{{}, size_t(options.most_bytes)};
  auto url = options.base_url + "/chat/completions";
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request.data());
  curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, curl_off_t(request.size()));
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &body);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);  // signals and threads do not go together
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, std::max(1L, long(std::min(seconds, options.connect_seconds) * 1e3)));
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, std::max(1L, long(seconds * 1e3)));
  Response out;
  CURLcode code = curl_easy_perform(curl);
  if (code == CURLE_OK) {
    curl_off_t wait = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &out.status);
    curl_easy_getinfo(curl, CURLINFO_RETRY_AFTER, &wait);
    out.retry_after = double(wait);
  } else if (code == CURLE_WRITE_ERROR) out.failure = cat("a response of more than ", options.most_bytes, " bytes");
  else out.failure = curl_easy_strerror(code);
  out.body = std::move(body.bytes);
  return out;
}

// The start of a text that came from outside, to be shown: servers repeat a wrong key.
std::string shown(std::string text, const EndpointOptions& options) {
  constexpr std::string_view kInstead = "(the key)";
  if (auto key = api_key(options); !key.empty())
    for (size_t at = 0; (at = text.find(key, at)) != text.npos; at += kInstead.size()) text.replace(at, key.size(), kInstead);
  return valid_utf8(text.substr(0, 300));
}

std::string content_of(const std::string& body) {
  static const Json::json_pointer kContent("/choices/0/message/content");
  Json response = parse_json(body, "the response");
  FULGUR_CHECK(response.contains(kContent) && response[kContent].is_string(),
               "[rewards] the response: expected text at choices[0].message.content, got none");
  return response[kContent];
}

bool may_get_better(long status) { return status == 0 || status == 200 || status == 408 || status == 429 || status >= 500; }

void check_options(const EndpointOptions& options) {
  auto check_range = [](const char* name, double value, double least, double most) {
    FULGUR_CHECK(value >= least && value <= most, "[rewards] endpoint: expected ", name, " from ", least, " to ", most, ", got ",
                 value);
  };
  const auto& url = options.base_url;
  FULGUR_CHECK(url.starts_with("http://") || url.starts_with("https://"),
               "[rewards] endpoint: expected a base_url of http:// or https://, got ", url);
  FULGUR_CHECK(!options.model.empty(), "[rewards] endpoint: expected a model's name, got none");
  FULGUR_CHECK(options.fields.is_object(), "[rewards] endpoint: expected fields that are an object, got ",
               options.fields.type_name());
  check_range("attempts", double(options.attempts), 1, 100);
  check_range("connect_seconds", options.connect_seconds, 1e-3, 1e5);
  check_range("attempt_seconds", options.attempt_seconds, 1e-3, 1e5);
  check_range("total_seconds", options.total_seconds, 1e-3, 1e5);
  check_range("first_wait", options.first_wait, 0, 1e5);
  check_range("longest_wait", options.longest_wait, 0, 1e5);
  check_range("most_bytes", double(options.most_bytes), 1, 1 << 30);
  if (options.api_key_variable.empty()) return;
  auto key = api_key(options);
  if (key.empty())
    throw InputError(
        cat("[rewards] endpoint: expected a key in the environment variable ", options.api_key_variable, ", got none"),
        cat("export ", options.api_key_variable, "=..., or give no variable for an endpoint without keys"));
  FULGUR_CHECK(std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < 0x7f; }),
               "[rewards] endpoint: expected a key of visible ASCII in ", options.api_key_variable, ", got another character");
}

}  // namespace

ChatEndpoint::ChatEndpoint(EndpointOptions options) : options_(std::move(options)) {
  while (options_.base_url.ends_with('/')) options_.base_url.pop_back();
  check_options(options_);
}

Outcome ChatEndpoint::ask(const Json& messages, const Read& read) const {
  auto begin = Clock::now();
  Json fields{{"model", options_.model}, {"messages", messages}, {"temperature", 0}};
  fields.update(options_.fields);
  auto request = fields.dump(-1, ' ', false, Json::error_handler_t::replace);
  Json detail{{"prompt", messages}, {"answer", nullptr}, {"attempts", 0}};
  std::string why;
  auto curl = new_handle();
  double wait = options_.first_wait;
  for (int64_t attempt = 1;; ++attempt) {
    detail["attempts"] = attempt;
    auto response =
        post(curl.get(), options_, request, std::min(options_.attempt_seconds, options_.total_seconds - seconds_since(begin)));
    if (response.status == 200) try {
        detail["answer"] = content_of(response.body);
        auto outcome = read(detail["answer"]);
        if (!outcome.detail.is_object()) outcome.detail = Json::object();
        detail.update(outcome.detail);
        return {outcome.score, std::move(outcome.why), std::move(detail)};
      } catch (const InputError& error) {
        why = shown(error.what(), options_);
      }
    else why = response.status == 0 ? response.failure : cat("status ", response.status, ": ", shown(response.body, options_));
    double pause = std::min(std::max(wait, response.retry_after), options_.longest_wait);
    bool time_left = seconds_since(begin) + pause < options_.total_seconds;
    if (attempt == options_.attempts || !may_get_better(response.status) || !time_left)
      return invalid_outcome(cat("endpoint: ", why, " (after ", attempt, attempt == 1 ? " attempt)" : " attempts)"),
                             std::move(detail));
    std::this_thread::sleep_for(std::chrono::duration<double>(pause));
    wait *= 2;
  }
}

}  // namespace fulgur
