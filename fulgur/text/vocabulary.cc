#include "fulgur/text/vocabulary.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "fulgur/base/error.h"
#include "fulgur/base/json.h"
#include "fulgur/base/sorted_json.h"
#include "fulgur/text/bytes.h"
#include "fulgur/text/train_bpe.h"

namespace fulgur {
namespace {

using Ids = std::unordered_map<std::string, int32_t>;  // by a token's characters

// The GPT-2 pattern, which a ByteLevel pre-tokenizer with use_regex means.
constexpr const char* kGpt2Pattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
constexpr const char* kLlama3Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
constexpr const char* kQwen2Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

int32_t token_id(const SortedJson& id, const std::string& name) {
  constexpr int32_t kLargest = 1 << 24;
  FULGUR_CHECK(id.is_number_unsigned() && id.get<uint64_t>() <= kLargest, "[tokenizer] ", name, ": expected ids from 0 to ",
               kLargest, ", got ", id.dump().substr(0, 100));
  return id.get<int32_t>();
}

void read_normalizer(const SortedJson& json, Vocabulary& out) {
  if (json.is_null()) return;
  std::string type = json.value("type", "");
  if (type == "Sequence") {
    for (const auto& part : json.at("normalizers")) read_normalizer(part, out);
    return;
  }
  FULGUR_CHECK(type == "NFC", "[tokenizer] ", out.name, ": normalizer: expected none, a Sequence or NFC, got ",
               json.dump().substr(0, 100));
  out.nfc = true;
}

void read_pre_tokenizer(const SortedJson& json, Vocabulary& out) {
  if (json.is_null()) return;
  std::string type = json.value("type", "");
  auto expect = [&](bool holds, const char* expected) {
    FULGUR_CHECK(holds, "[tokenizer] ", out.name, ": pre_tokenizer: expected ", expected, ", got ", json.dump().substr(0, 200));
  };
  if (type == "Sequence") {
    for (const auto& part : json.at("pretokenizers")) read_pre_tokenizer(part, out);
  } else if (type == "Split") {
    expect(json.value("behavior", "") == "Isolated" && !json.value("invert", false), "Split with behavior Isolated");
    expect(json.at("pattern").contains("Regex"), "Split by a Regex");
    out.patterns.push_back(json["pattern"]["Regex"].get<std::string>());
  } else if (type == "Digits") {
    out.patterns.push_back(json.value("individual_digits", false) ? "\\p{N}" : "\\p{N}+");
  } else if (type == "ByteLevel") {
    expect(!json.value("add_prefix_space", false), "ByteLevel without add_prefix_space");
    if (json.value("use_regex", true)) out.patterns.push_back(kGpt2Pattern);
  } else {
    expect(false, "Sequence, Split, Digits or ByteLevel");
  }
}

// Room for ids up to the largest: memory grows with the file, not with an id in it.
void make_room(Vocabulary& out, int32_t largest, size_t tokens) {
  size_t most = 16 * tokens + 4096;
  FULGUR_CHECK(largest < int64_t(most), "[tokenizer] ", out.name, ": expected ids below ", most, " for ", tokens, " tokens, got ",
               largest);
  out.tokens.resize(largest + 1), out.known.resize(largest + 1);
}

void add_tokens(Vocabulary& out, const Ids& ids) {
  for (const auto& [token, id] : ids) {
    FULGUR_CHECK(!out.known[id], "[tokenizer] ", out.name, ": expected each id once, got ", id, " twice");
    bool byte_level;
    out.tokens[id] = token_bytes(token, byte_level);
    if (!byte_level) out.tokens[id] = token;
    out.known[id] = true;
  }
  for (const auto& token : out.added) {
    auto same = ids.find(token.text);
    FULGUR_CHECK(!out.known[token.id] || (same != ids.end() && same->second == token.id), "[tokenizer] ", out.name,
                 ": expected an id of its own for the added token ", token.text, ", got ", token.id);
    out.tokens[token.id] = token.text, out.known[token.id] = true;
  }
  for (int b = 0; b < 256; ++b) {
    auto found = ids.find(byte_characters()[b]);
    bool printable = b >= ' ' && b < 127;
    FULGUR_CHECK(found != ids.end() || !printable, "[tokenizer] ", out.name,
                 ": expected a token for every byte, got none for byte ", b);
    out.byte_ids.push_back(found == ids.end() ? -1 : found->second);
  }
}

void add_merge(Vocabulary& out, const Ids& ids, const std::string& left, const std::string& right) {
  auto a = ids.find(left), b = ids.find(right), joined = ids.find(left + right);
  FULGUR_CHECK(a != ids.end() && b != ids.end() && joined != ids.end(), "[tokenizer] ", out.name,
               ": expected the tokens of merge ", out.merges.size(), " in the vocabulary, got ", left, " and ", right);
  out.merges.push_back({a->second, b->second, joined->second});
}

void add_merge(Vocabulary& out, const Ids& ids, const std::string& both) {
  auto space = both.find(' ', 1);
  FULGUR_CHECK(space != std::string::npos, "[tokenizer] ", out.name, ": expected a merge of two tokens, got ",
               both.substr(0, 100));
  add_merge(out, ids, both.substr(0, space), both.substr(space + 1));
}

void read_model(const SortedJson& model, Vocabulary& out, Ids& ids) {
  FULGUR_CHECK(model.value("type", "BPE") == "BPE", "[tokenizer] ", out.name, ": model.type: expected BPE, got ",
               model.at("type").dump());
  auto says_nothing = [](const SortedJson& value) {
    return value.is_null() || value == 0 || (value.is_string() && value.get<std::string>().empty());
  };
  for (const char* option : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"})
    FULGUR_CHECK(!model.contains(option) || says_nothing(model[option]), "[tokenizer] ", out.name, ": model.", option,
                 ": expected none, got ", model[option].dump());
  FULGUR_CHECK(!model.value("byte_fallback", false), "[tokenizer] ", out.name,
               ": model.byte_fallback: expected a byte-level BPE, got true");
  out.whole_words = model.value("ignore_merges", false);
  for (const auto& [token, id] : model.at("vocab").items()) ids[token] = token_id(id, out.name);
  if (model.contains("unk_token") && model["unk_token"].is_string())
    if (auto unknown = ids.find(model["unk_token"].get<std::string>()); unknown != ids.end()) out.unknown = unknown->second;
}

Vocabulary vocabulary_of(const SortedJson& json, const std::string& name) {
  Vocabulary out;
  Ids ids;
  out.name = name;
  read_model(json.at("model"), out, ids);
  for (const auto& token : json.value("added_tokens", SortedJson::array()))
    out.added.push_back({token.at("content").get<std::string>(), token_id(token.at("id"), name), token.value("special", false),
                         token.value("normalized", false)});
  int32_t largest = -1;
  for (const auto& [token, id] : ids) largest = std::max(largest, id);
  for (const auto& token : out.added) largest = std::max(largest, token.id);
  make_room(out, largest, ids.size() + out.added.size());
  add_tokens(out, ids);
  for (const auto& merge : json["model"].at("merges")) {
    if (merge.is_array() && merge.size() == 2) add_merge(out, ids, merge[0].get<std::string>(), merge[1].get<std::string>());
    else add_merge(out, ids, merge.get<std::string>());
  }
  read_normalizer(json.value("normalizer", SortedJson()), out);
  read_pre_tokenizer(json.value("pre_tokenizer", SortedJson()), out);
  return out;
}

}  // namespace

Vocabulary read_tokenizer_json(const std::filesystem::path& path) {
  SortedJson json = read_sorted_json(path);
  try {
    return vocabulary_of(json, path.string());
  } catch (const SortedJson::exception& error) {
    throw InputError(cat("[tokenizer] ", path.string(), ": expected a tokenizer.json of type BPE, got ", error.what()));
  }
}

Json tokenizer_json(const Vocabulary& v) {
  auto characters = [](const std::string& bytes) {
    std::string out;
    for (char byte : bytes) out += byte_characters()[uint8_t(byte)];
    return out;
  };
  Json vocab = Json::object(), merges = Json::array(), added = Json::array(), parts = Json::array();
  std::vector<bool> is_added(v.tokens.size());
  for (const auto& token : v.added) is_added[token.id] = true;
  // Each token stands once, so no key is looked for among those before it.
  std::vector<Json::object_t::value_type>& entries = vocab.get_ref<Json::object_t&>();
  for (size_t id = 0; id < v.tokens.size(); ++id)
    if (v.known[id]) entries.emplace_back(is_added[id] ? v.tokens[id] : characters(v.tokens[id]), id);
  for (const auto& merge : v.merges) merges.push_back({characters(v.tokens[merge.left]), characters(v.tokens[merge.right])});
  for (const auto& token : v.added)
    added.push_back({{"id", token.id},
                     {"content", token.text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", token.normalized},
                     {"special", token.special}});
  for (const auto& pattern : v.patterns)
    parts.push_back({{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
  Json bytes{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  parts.push_back(bytes);
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", v.nfc ? Json{{"type", "NFC"}} : Json()},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", parts}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", v.whole_words},
            {"vocab", vocab},
            {"merges", merges}}}};
}

Vocabulary gguf_vocabulary(const std::vector<std::string>& tokens, const std::vector<int32_t>& type,
                           const std::vector<std::string>& merges, const std::string& pre, const std::string& name) {
  static const std::map<std::string, std::vector<std::string>> kPatterns{
      {"gpt-2", {kGpt2Pattern}},           {"default", {kGpt2Pattern}},  {"smollm", {"\\p{N}", kGpt2Pattern}},
      {"llama-bpe", {kLlama3Pattern}},     {"llama3", {kLlama3Pattern}}, {"qwen2", {kQwen2Pattern}},
      {"deepseek-v3", deepseek_patterns()}};
  auto patterns = kPatterns.find(pre);
  FULGUR_CHECK(patterns != kPatterns.end(), "[tokenizer] ", name,
               ": tokenizer.ggml.pre: expected gpt-2, smollm, llama-bpe, qwen2 or deepseek-v3, got ", pre);
  FULGUR_CHECK(!tokens.empty() && type.size() == tokens.size(), "[tokenizer] ", name, ": expected a type for each of ",
               tokens.size(), " tokens, got ", type.size());
  Vocabulary out;
  Ids ids;
  out.name = name;
  for (size_t i = 0; i < tokens.size(); ++i) {
    FULGUR_CHECK(ids.try_emplace(tokens[i], int32_t(i)).second, "[tokenizer] ", name, ": expected each token once, got ",
                 tokens[i], " twice");
    if (type[i] == 3 || type[i] == 4) out.added.push_back({tokens[i], int32_t(i), type[i] == 3, false});
  }
  make_room(out, int32_t(tokens.size()) - 1, tokens.size());
  add_tokens(out, ids);
  for (const auto& merge : merges) add_merge(out, ids, merge);
  out.patterns = patterns->second;
  out.whole_words = pre == "llama-bpe" || pre == "llama3";
  out.nfc = pre == "qwen2";
  return out;
}

}  // namespace fulgur
