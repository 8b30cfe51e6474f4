#include "fulgur/text/tokenizer.h"

#include <algorithm>
#include <queue>
#include <unordered_map>

#include "fulgur/base/error.h"
#include "fulgur/base/json.h"
#include "fulgur/text/bytes.h"
#include "fulgur/text/splitter.h"

namespace fulgur {
namespace {

struct Merge {
  int32_t rank, id;
};

uint64_t pair_key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

struct AddedToken {
  std::string text;
  int32_t id;
  bool special, normalized;
};

// The GPT-2 pattern, which a ByteLevel pre-tokenizer with use_regex means.
constexpr const char* kGpt2Pattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

int32_t token_id(const Json& id, const std::string& name) {
  constexpr int32_t kLargest = 1 << 24;
  FULGUR_CHECK(id.is_number_unsigned() && id.get<uint64_t>() <= kLargest, "[tokenizer] ", name, ": expected ids from 0 to ",
               kLargest, ", got ", id.dump().substr(0, 100));
  return id.get<int32_t>();
}

void read_pre_tokenizer(const Json& json, const std::string& name, std::vector<std::string>& patterns) {
  if (json.is_null()) return;
  std::string type = json.value("type", "");
  if (type == "Sequence") {
    for (const auto& part : json.at("pretokenizers")) read_pre_tokenizer(part, name, patterns);
  } else if (type == "Split") {
    FULGUR_CHECK(json.value("behavior", "") == "Isolated" && !json.value("invert", false), "[tokenizer] ", name,
                 ": pre_tokenizer: expected Split with behavior Isolated, got ", json.dump());
    patterns.push_back(json.at("pattern").at("Regex").get<std::string>());
  } else if (type == "ByteLevel") {
    FULGUR_CHECK(!json.value("add_prefix_space", false), "[tokenizer] ", name,
                 ": pre_tokenizer: expected ByteLevel without add_prefix_space, got ", json.dump());
    if (json.value("use_regex", true)) patterns.push_back(kGpt2Pattern);
  } else {
    throw InputError(cat("[tokenizer] ", name, ": pre_tokenizer: expected Sequence, Split or ByteLevel, got ", type));
  }
}

}  // namespace

struct Tokenizer::Impl {
  std::vector<std::string> bytes;  // by id; what decode gives
  std::vector<bool> special, known;
  std::unordered_map<uint64_t, Merge> merges;
  int32_t byte_id[256];
  std::vector<AddedToken> added;
  Splitter splitter{{}, ""};

  void read(const Json& json, const std::string& name);
  void read_merges(const Json& merges, const std::unordered_map<std::string, int32_t>& vocab, const std::string& name);
  void encode_word(std::string_view word, std::vector<int32_t>& out) const;
  void encode_text(std::string_view text, std::vector<int32_t>& out) const;
  void encode_with_added(std::string_view text, int pass, std::vector<int32_t>& out) const;
};

void Tokenizer::Impl::read_merges(const Json& list, const std::unordered_map<std::string, int32_t>& vocab,
                                  const std::string& name) {
  int32_t rank = 0;
  for (const auto& merge : list) {
    std::string left, right;
    if (merge.is_string()) {
      auto text = merge.get<std::string>();
      auto space = text.find(' ', 1);
      FULGUR_CHECK(space != std::string::npos, "[tokenizer] ", name, ": expected a merge of two tokens, got ", merge.dump());
      left = text.substr(0, space), right = text.substr(space + 1);
    } else {
      FULGUR_CHECK(merge.is_array() && merge.size() == 2, "[tokenizer] ", name, ": expected a merge of two tokens, got ",
                   merge.dump());
      left = merge[0].get<std::string>(), right = merge[1].get<std::string>();
    }
    auto a = vocab.find(left), b = vocab.find(right), joined = vocab.find(left + right);
    FULGUR_CHECK(a != vocab.end() && b != vocab.end() && joined != vocab.end(), "[tokenizer] ", name,
                 ": expected the tokens of merge ", rank, " in the vocabulary, got ", merge.dump());
    merges.try_emplace(pair_key(a->second, b->second), Merge{rank++, joined->second});
  }
}

void Tokenizer::Impl::read(const Json& json, const std::string& name) {
  const Json& model = json.at("model");
  FULGUR_CHECK(model.value("type", "BPE") == "BPE", "[tokenizer] ", name, ": model.type: expected BPE, got ",
               model.at("type").dump());
  std::unordered_map<std::string, int32_t> vocab;
  for (const auto& [token, id] : model.at("vocab").items()) vocab[token] = token_id(id, name);
  for (const auto& token : json.value("added_tokens", Json::array()))
    added.push_back({token.at("content").get<std::string>(), token_id(token.at("id"), name), token.value("special", false),
                     token.value("normalized", false)});
  int32_t largest = -1;
  for (const auto& [token, id] : vocab) largest = std::max(largest, id);
  for (const auto& token : added) largest = std::max(largest, token.id);
  size_t tokens = vocab.size() + added.size(), most = 16 * tokens + 4096;  // memory grows with the file, not with an id in it
  FULGUR_CHECK(largest < int64_t(most), "[tokenizer] ", name, ": expected ids below ", most, " for ", tokens, " tokens, got ",
               largest);
  bytes.resize(largest + 1), special.resize(largest + 1), known.resize(largest + 1);
  for (const auto& [token, id] : vocab) {
    FULGUR_CHECK(!known[id], "[tokenizer] ", name, ": expected each id once, got ", id, " twice");
    bool byte_level;
    bytes[id] = token_bytes(token, byte_level);
    if (!byte_level) bytes[id] = token;
    known[id] = true;
  }
  for (const auto& token : added) {
    auto same = vocab.find(token.text);
    FULGUR_CHECK(!known[token.id] || (same != vocab.end() && same->second == token.id), "[tokenizer] ", name,
                 ": expected an id of its own for the added token ", token.text, ", got ", token.id);
    bytes[token.id] = token.text, special[token.id] = token.special, known[token.id] = true;
  }
  for (int b = 0; b < 256; ++b) {
    auto found = vocab.find(byte_characters()[b]);
    FULGUR_CHECK(found != vocab.end(), "[tokenizer] ", name, ": expected a token for every byte, got none for byte ", b);
    byte_id[b] = found->second;
  }
  read_merges(model.at("merges"), vocab, name);
  std::vector<std::string> patterns;
  read_pre_tokenizer(json.value("pre_tokenizer", Json()), name, patterns);
  splitter = Splitter(patterns, name);
  // Leftmost, then longest: longer texts are tried first.
  std::stable_sort(added.begin(), added.end(), [](auto& a, auto& b) { return a.text.size() > b.text.size(); });
}

// Merges the pair of lowest rank, the leftmost of equals, until none is left.
void Tokenizer::Impl::encode_word(std::string_view word, std::vector<int32_t>& out) const {
  struct Symbol {
    int32_t id;
    int32_t previous, next;  // -1 at the ends
  };
  struct Candidate {
    int32_t rank, at, id, left, right;
    bool operator>(const Candidate& o) const { return std::tie(rank, at) > std::tie(o.rank, o.at); }
  };
  std::vector<Symbol> symbols(word.size());
  for (size_t i = 0; i < word.size(); ++i)
    symbols[i] = {byte_id[uint8_t(word[i])], int32_t(i) - 1, i + 1 < word.size() ? int32_t(i) + 1 : -1};
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  auto consider = [&](int32_t at) {
    if (at < 0 || symbols[at].next < 0) return;
    int32_t left = symbols[at].id, right = symbols[symbols[at].next].id;
    auto found = merges.find(pair_key(left, right));
    if (found != merges.end()) queue.push({found->second.rank, at, found->second.id, left, right});
  };
  for (size_t i = 0; i < symbols.size(); ++i) consider(int32_t(i));
  while (!queue.empty()) {
    Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.at];
    if (left.id != best.left || left.next < 0 || symbols[left.next].id != best.right) continue;  // merged since
    Symbol& right = symbols[left.next];
    left.id = best.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = best.at;
    consider(left.previous), consider(best.at);
  }
  for (int32_t i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[i].next) out.push_back(symbols[i].id);
}

void Tokenizer::Impl::encode_text(std::string_view text, std::vector<int32_t>& out) const {
  struct Known {
    size_t begin, size;
  };
  std::unordered_map<std::string_view, Known> words;  // of this text: most words come again
  for (auto word : splitter.split(text)) {
    auto [found, is_new] = words.try_emplace(word, Known{out.size(), 0});
    if (is_new) {
      encode_word(word, out);
      found->second.size = out.size() - found->second.begin;
    } else {
      for (size_t i = 0; i < found->second.size; ++i) out.push_back(out[found->second.begin + i]);
    }
  }
}

// Pass 0 cuts out added tokens that come before normalisation, pass 1 the others; what is between is text.
void Tokenizer::Impl::encode_with_added(std::string_view text, int pass, std::vector<int32_t>& out) const {
  if (pass == 2) return encode_text(text, out);
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* found = nullptr;
    for (const auto& token : added)
      if (token.normalized == (pass == 1) && !token.text.empty() && text.compare(at, token.text.size(), token.text) == 0) {
        found = &token;
        break;
      }
    if (!found) {
      ++at;
      continue;
    }
    encode_with_added(text.substr(done, at - done), pass + 1, out);
    out.push_back(found->id);
    done = at = at + found->text.size();
  }
  encode_with_added(text.substr(done), pass + 1, out);
}

Tokenizer::Tokenizer(const std::filesystem::path& path) : impl_(std::make_unique<Impl>()) {
  Json json = read_json(path);
  try {
    impl_->read(json, path.string());
  } catch (const Json::exception& error) {
    throw InputError(cat("[tokenizer] ", path.string(), ": expected a tokenizer.json of type BPE, got ", error.what()));
  }
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
  std::string valid = valid_utf8(text);
  std::vector<int32_t> out;
  if (parse_special) impl_->encode_with_added(valid, 0, out);
  else impl_->encode_text(valid, out);
  return out;
}

std::vector<std::string> Tokenizer::split(std::string_view text) const {
  std::string valid = valid_utf8(text);
  std::vector<std::string> out;
  for (auto piece : impl_->splitter.split(valid)) out.emplace_back(piece);
  return out;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string out;
  for (int32_t id : ids) {
    FULGUR_CHECK(id >= 0 && id < vocab_size(), "[tokenizer] expected token ids below ", vocab_size(), ", got ", id);
    if (!skip_special || !impl_->special[id]) out += impl_->bytes[id];
  }
  return out;
}

int32_t Tokenizer::vocab_size() const { return int32_t(impl_->bytes.size()); }

int32_t Tokenizer::id(std::string_view token) const {
  for (const auto& added : impl_->added)
    if (added.text == token) return added.id;
  return -1;
}

int32_t Tokenizer::byte_length(int32_t id) const { return impl_->special.at(id) ? 0 : int32_t(impl_->bytes.at(id).size()); }

std::string valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    uint8_t lead = uint8_t(bytes[i]);
    size_t size = lead < 0x80                   ? 1
                  : lead >= 0xc2 && lead < 0xe0 ? 2
                  : (lead & 0xf0) == 0xe0       ? 3
                  : lead >= 0xf0 && lead < 0xf5 ? 4
                                                : 0;
    size_t good = size > 0 ? 1 : 0;
    for (; good > 0 && good < size && i + good < bytes.size(); ++good) {
      uint8_t low = 0x80, high = 0xbf, next = uint8_t(bytes[i + good]);
      if (good == 1) {  // overlong forms, surrogates, beyond U+10FFFF
        if (lead == 0xe0) low = 0xa0;
        if (lead == 0xed) high = 0x9f;
        if (lead == 0xf0) low = 0x90;
        if (lead == 0xf4) high = 0x8f;
      }
      if (next < low || next > high) break;
    }
    if (size > 0 && good == size) out.append(bytes.substr(i, size));
    else out += "\xef\xbf\xbd";
    i += std::max<size_t>(good, 1);
  }
  return out;
}

}  // namespace fulgur
