#include "fulgur/text/tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <queue>
#include <unordered_map>

#include "fulgur/base/error.h"
#include "fulgur/base/utf8.h"
#include "fulgur/text/splitter.h"

namespace fulgur {
namespace {

// What a pair of tokens merges to, in open addressing: most pairs that are asked for are not there.
class MergeTable {
 public:
  struct Entry {
    uint64_t pair;
    int32_t rank = -1, joined;  // rank -1: nothing
  };

  explicit MergeTable(const std::vector<Vocabulary::Merge>& merges) {
    size_t size = 64;
    while (size < 2 * merges.size()) size *= 2;
    entries_.resize(size);
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      Entry& entry = entries_[place(key(merges[rank].left, merges[rank].right))];
      if (entry.rank < 0) entry = {key(merges[rank].left, merges[rank].right), int32_t(rank), merges[rank].joined};
    }
  }
  const Entry& find(int32_t left, int32_t right) const { return entries_[place(key(left, right))]; }

 private:
  static uint64_t key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }
  size_t place(uint64_t pair) const {
    size_t at = (pair * 0x9e3779b97f4a7c15 >> 20) & (entries_.size() - 1);
    while (entries_[at].rank >= 0 && entries_[at].pair != pair) at = (at + 1) & (entries_.size() - 1);
    return at;
  }
  std::vector<Entry> entries_;
};

// Words and their ids, the last that fell into each place: most words come again. One a thread, of one tokenizer at a time.
class WordCache {
 public:
  struct alignas(64) Word {
    std::array<uint64_t, 3> bytes{};  // zeros behind the word, and its length in the last
    std::array<int32_t, 9> ids;
    int32_t count = 0;
  };
  static constexpr size_t kLongest = 23;

  static WordCache& of(uint64_t tokenizer) {
    static thread_local WordCache cache;
    if (cache.tokenizer_ != tokenizer) cache.tokenizer_ = tokenizer, cache.words_.assign(kPlaces, {});
    return cache;
  }
  static std::array<uint64_t, 3> key(std::string_view word) {
    std::array<uint64_t, 3> out{};
    std::memcpy(out.data(), word.data(), word.size());
    reinterpret_cast<char*>(out.data())[kLongest] = char(word.size());
    return out;
  }
  Word& place(const std::array<uint64_t, 3>& key) {
    uint64_t hash = (key[0] * 0x9e3779b97f4a7c15 ^ key[1]) * 0xbf58476d1ce4e5b9 ^ key[2] * 0x94d049bb133111eb;
    return words_[(hash ^ hash >> 29) * 0x9e3779b97f4a7c15 >> 48];
  }

 private:
  static constexpr size_t kPlaces = size_t(1) << 16;
  uint64_t tokenizer_ = 0;
  std::vector<Word> words_;
};

std::string nfc(std::string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return uint8_t(c) < 0x80; })) return std::string(text);
  utf8proc_uint8_t* made = nullptr;
  auto size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), utf8proc_ssize_t(text.size()), &made,
                           utf8proc_option_t(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  FULGUR_CHECK(size >= 0, "[tokenizer] expected text that has a form NFC, got an error: ", utf8proc_errmsg(size));
  std::string out(reinterpret_cast<const char*>(made), size_t(size));
  std::free(made);
  return out;
}

uint64_t next_serial() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(Vocabulary from)
      : vocabulary(std::move(from)),
        merges(vocabulary.merges),
        splitter(vocabulary.patterns, vocabulary.name) {
    special.resize(vocabulary.tokens.size());
    for (const auto& token : vocabulary.added) special[token.id] = token.special;
    // Leftmost, then longest: longer texts are tried first.
    std::stable_sort(vocabulary.added.begin(), vocabulary.added.end(),
                     [](auto& a, auto& b) { return a.text.size() > b.text.size(); });
    for (const auto& token : vocabulary.added)
      if (!token.text.empty()) added[uint8_t(token.text[0])].push_back(&token);
    if (vocabulary.whole_words)
      for (size_t id = 0; id < vocabulary.tokens.size(); ++id)
        if (vocabulary.known[id]) words.try_emplace(vocabulary.tokens[id], int32_t(id));
  }

  Vocabulary vocabulary;
  std::vector<bool> special;
  MergeTable merges;
  Splitter splitter;
  std::vector<const AddedToken*> added[256];            // by their first byte, the longest first
  std::unordered_map<std::string_view, int32_t> words;  // where a whole piece may be a token
  const uint64_t serial = next_serial();
  static constexpr size_t kShort = 64;

  void add(int32_t id, std::vector<int32_t>& out) const {
    if (id < 0) id = vocabulary.unknown;
    if (id >= 0) out.push_back(id);
  }
  void encode_word(std::string_view word, std::vector<int32_t>& out) const;
  void merge_short(std::string_view word, std::vector<int32_t>& out) const;
  void merge_long(std::string_view word, std::vector<int32_t>& out) const;
  void encode_text(std::string_view text, std::vector<int32_t>& out) const;
  const AddedToken* added_at(std::string_view text, size_t at, bool normalized) const;
  void encode_with_added(const Prompt& prompt, size_t begin, size_t end, int pass, std::vector<int32_t>& out) const;
};

// Merges the pair of lowest rank, the leftmost of equals, until none is left.
void Tokenizer::Impl::merge_short(std::string_view word, std::vector<int32_t>& out) const {
  int32_t ids[kShort];
  const MergeTable::Entry* merge[kShort];  // of each with the next
  size_t count = word.size();
  for (size_t i = 0; i < count; ++i) ids[i] = vocabulary.byte_ids[uint8_t(word[i])];
  for (size_t i = 0; i + 1 < count; ++i) merge[i] = &merges.find(ids[i], ids[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i)
      if (uint32_t(merge[i]->rank) < uint32_t(merge[best]->rank)) best = i;
    if (merge[best]->rank < 0) break;
    ids[best] = merge[best]->joined;
    --count;
    std::copy(ids + best + 2, ids + count + 1, ids + best + 1);
    std::copy(merge + best + 1, merge + count, merge + best);
    if (best > 0) merge[best - 1] = &merges.find(ids[best - 1], ids[best]);
    if (best + 1 < count) merge[best] = &merges.find(ids[best], ids[best + 1]);
  }
  for (size_t i = 0; i < count; ++i) add(ids[i], out);
}

// The same of a word so long that looking at all its pairs for each merge would take too long.
void Tokenizer::Impl::merge_long(std::string_view word, std::vector<int32_t>& out) const {
  struct Symbol {
    int32_t id;
    int32_t previous, next;  // -1 at the ends
  };
  struct Candidate {
    int32_t rank, at, joined, left, right;
    bool operator>(const Candidate& o) const { return std::tie(rank, at) > std::tie(o.rank, o.at); }
  };
  std::vector<Symbol> symbols(word.size());
  for (size_t i = 0; i < word.size(); ++i)
    symbols[i] = {vocabulary.byte_ids[uint8_t(word[i])], int32_t(i) - 1, i + 1 < word.size() ? int32_t(i) + 1 : -1};
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  auto consider = [&](int32_t at) {
    if (at < 0 || symbols[at].next < 0) return;
    int32_t left = symbols[at].id, right = symbols[symbols[at].next].id;
    const auto& merge = merges.find(left, right);
    if (merge.rank >= 0) queue.push({merge.rank, at, merge.joined, left, right});
  };
  for (size_t i = 0; i < symbols.size(); ++i) consider(int32_t(i));
  while (!queue.empty()) {
    Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.at];
    if (left.id != best.left || left.next < 0 || symbols[left.next].id != best.right) continue;  // merged since
    Symbol& right = symbols[left.next];
    left.id = best.joined;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = best.at;
    consider(left.previous), consider(best.at);
  }
  for (int32_t i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[i].next) add(symbols[i].id, out);
}

void Tokenizer::Impl::encode_word(std::string_view word, std::vector<int32_t>& out) const {
  if (auto whole = vocabulary.whole_words ? words.find(word) : words.end(); whole != words.end()) out.push_back(whole->second);
  else if (word.size() <= kShort) merge_short(word, out);
  else merge_long(word, out);
}

void Tokenizer::Impl::encode_text(std::string_view text, std::vector<int32_t>& out) const {
  std::string normal;
  if (vocabulary.nfc) normal = nfc(text), text = normal;
  auto& cache = WordCache::of(serial);
  splitter.split(text, [&](std::string_view word) {
    if (word.size() > WordCache::kLongest) return encode_word(word, out);
    auto key = WordCache::key(word);
    auto& known = cache.place(key);
    if (known.bytes == key) {
      out.insert(out.end(), known.ids.begin(), known.ids.begin() + known.count);
      return;
    }
    size_t begin = out.size();
    encode_word(word, out);
    if (out.size() - begin > known.ids.size()) return;
    known.bytes = key, known.count = int32_t(out.size() - begin);
    std::copy(out.begin() + int64_t(begin), out.end(), known.ids.begin());
  });
}

const AddedToken* Tokenizer::Impl::added_at(std::string_view text, size_t at, bool normalized) const {
  for (const auto* token : added[uint8_t(text[at])])
    if (token->normalized == normalized && text.compare(at, token->text.size(), token->text) == 0) return token;
  return nullptr;
}

// Pass 0 cuts out added tokens that come before normalisation, pass 1 the others; what is between is text.
void Tokenizer::Impl::encode_with_added(const Prompt& prompt, size_t begin, size_t end, int pass,
                                        std::vector<int32_t>& out) const {
  auto text = std::string_view(prompt.text).substr(0, end);
  if (pass == 2) return encode_text(text.substr(begin), out);
  auto plain = std::lower_bound(prompt.plain.begin(), prompt.plain.end(), begin,
                                [](const Prompt::Span& span, size_t at) { return span.end <= at; });
  size_t done = begin;
  for (size_t at = begin; at < end;) {
    for (; plain != prompt.plain.end() && plain->end <= at;) ++plain;
    size_t stop = plain == prompt.plain.end() ? end : std::min(end, plain->begin);  // of what the format wrote
    if (at >= stop) {
      at = plain->end;
      continue;
    }
    const auto* token = added_at(text.substr(0, stop), at, pass == 1);
    if (!token) {
      ++at;
      continue;
    }
    encode_with_added(prompt, done, at, pass + 1, out);
    out.push_back(token->id);
    done = at = at + token->text.size();
  }
  encode_with_added(prompt, done, end, pass + 1, out);
}

Tokenizer::Tokenizer(const std::filesystem::path& path) : Tokenizer(read_tokenizer_json(path)) {}
Tokenizer::Tokenizer(Vocabulary vocabulary) : impl_(std::make_unique<Impl>(std::move(vocabulary))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
  if (parse_special) return encode(Prompt{std::string(text), {}});
  std::vector<int32_t> out;
  if (invalid_utf8(text) == text.size()) impl_->encode_text(text, out);
  else impl_->encode_text(valid_utf8(text), out);
  return out;
}

std::vector<int32_t> Tokenizer::encode(const Prompt& prompt) const {
  Prompt valid;  // each of its parts is made valid for itself
  size_t done = 0;
  for (auto span : prompt.plain) {
    valid.add(valid_utf8(std::string_view(prompt.text).substr(done, span.begin - done)));
    valid.add_plain(valid_utf8(std::string_view(prompt.text).substr(span.begin, span.end - span.begin)));
    done = span.end;
  }
  valid.add(valid_utf8(std::string_view(prompt.text).substr(done)));
  std::vector<int32_t> out;
  impl_->encode_with_added(valid, 0, valid.text.size(), 0, out);
  return out;
}

std::vector<std::string> Tokenizer::split(std::string_view text) const {
  std::string valid = valid_utf8(text);
  std::vector<std::string> out;
  impl_->splitter.split(valid, [&](std::string_view piece) { out.emplace_back(piece); });
  return out;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string out;
  for (int32_t id : ids) {
    FULGUR_CHECK(id >= 0 && id < vocab_size(), "[tokenizer] expected token ids below ", vocab_size(), ", got ", id);
    if (!skip_special || !impl_->special[id]) out += impl_->vocabulary.tokens[id];
  }
  return out;
}

int32_t Tokenizer::vocab_size() const { return int32_t(impl_->vocabulary.tokens.size()); }

int32_t Tokenizer::id(std::string_view token) const {
  for (const auto& added : impl_->vocabulary.added)
    if (added.text == token) return added.id;
  return -1;
}

bool Tokenizer::is_special(int32_t id) const { return impl_->special.at(id); }

int32_t Tokenizer::byte_length(int32_t id) const {
  return impl_->special.at(id) ? 0 : int32_t(impl_->vocabulary.tokens.at(id).size());
}

}  // namespace fulgur
