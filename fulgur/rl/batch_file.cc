#include "fulgur/rl/batch_file.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>

#include "fulgur/base/error.h"
#include "fulgur/base/json.h"
#include "fulgur/io/safetensors.h"

namespace fulgur {
namespace {

constexpr int64_t kLongest = int64_t(1) << 31;  // tokens, or choices, of a file

Json json_of(const Member& m) {
  return {{"family", m.attempt.family->name()},
          {"task", m.attempt.task.key},
          {"prompt", json_of(m.attempt.task.messages)},
          {"data", m.attempt.task.data},
          {"seed", m.attempt.seed},
          {"key", m.attempt.key},
          {"conversation", json_of(m.conversation)},
          {"segments", m.segments.size()},
          {"unfinished", m.unfinished},
          {"end", m.end},
          {"score", m.outcome.score ? Json(*m.outcome.score) : Json()},
          {"why", m.outcome.why},
          {"detail", m.outcome.detail}};
}

// A field of a line, of the type asked for.
template <class T>
T field(const Json& line, const char* key, bool (Json::*is)() const noexcept, const std::string& where) {
  FULGUR_CHECK(line.contains(key) && (line[key].*is)(), "[batch] ", where, ": ", key, ": expected another type, got ",
               line.contains(key) ? line[key].dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 100) : "nothing");
  return line[key].get<T>();
}

Member member_of(const Json& line, size_t& segments, const std::string& where) {
  FULGUR_CHECK(line.is_object(), "[batch] ", where, ": expected an object");
  auto text = [&](const char* key) { return field<std::string>(line, key, &Json::is_string, where); };
  auto list = [&](const char* key) { return messages_of(field<Json>(line, key, &Json::is_array, where), where); };
  Member m;
  m.attempt.family = &family(text("family"));
  m.attempt.task = {text("family"), text("task"), list("prompt"), line.value("data", Json())};
  m.attempt.seed = field<uint64_t>(line, "seed", &Json::is_number_unsigned, where), m.attempt.key = text("key");
  m.conversation = list("conversation");
  segments = field<uint64_t>(line, "segments", &Json::is_number_unsigned, where);
  auto unfinished = field<uint64_t>(line, "unfinished", &Json::is_number_unsigned, where);
  FULGUR_CHECK(segments <= uint64_t(kLongest) && unfinished <= uint64_t(kLongest), "[batch] ", where,
               ": expected fewer segments and unfinished tokens, got ", segments, " and ", unfinished);
  m.unfinished = int64_t(unfinished), m.end = text("end");
  if (line.contains("score") && line["score"].is_number()) m.outcome.score = line["score"].get<double>();
  m.outcome.why = text("why"), m.outcome.detail = line.value("detail", Json());
  return m;
}

// Numbers of all segments, as they lie in the file.
struct Columns {
  std::vector<int64_t> lengths, draws, recorded;  // of each segment: tokens, drawn ones, places with choices
  std::vector<int32_t> tokens;
  std::vector<int64_t> drawn, version, kept_counts;  // of each drawn token
  std::vector<float> log_prob, kept_mass;
  std::vector<int32_t> kept, experts, selected;
  std::vector<int64_t> choices{0, 0, 0, 0};  // layers and k of experts, of selected keys

  // Calls visit(name, column) for each.
  template <class Visit>
  void visit(const Visit& visit) {
    visit("lengths", lengths), visit("draws", draws), visit("recorded", recorded), visit("tokens", tokens);
    visit("drawn", drawn), visit("version", version), visit("kept_counts", kept_counts), visit("log_prob", log_prob);
    visit("kept_mass", kept_mass), visit("kept", kept), visit("experts", experts), visit("selected", selected);
    visit("choices", choices);
  }
};

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void add_segment(Columns& c, const Segment& s) {
  c.lengths.push_back(int64_t(s.tokens.size())), c.draws.push_back(int64_t(s.drawn.size()));
  c.recorded.push_back(std::max(s.record.experts.positions, s.record.selected.positions));
  append(c.tokens, s.tokens), append(c.drawn, s.drawn), append(c.version, s.version), append(c.log_prob, s.log_prob);
  append(c.kept_mass, s.kept_mass), append(c.kept, s.kept), append(c.experts, s.record.experts.ids);
  append(c.selected, s.record.selected.ids);
  for (size_t i = 0; i < s.drawn.size(); ++i) c.kept_counts.push_back(s.kept_offsets[i + 1] - s.kept_offsets[i]);
  if (s.record.experts.positions > 0) c.choices[0] = s.record.experts.layers, c.choices[1] = s.record.experts.k;
  if (s.record.selected.positions > 0) c.choices[2] = s.record.selected.layers, c.choices[3] = s.record.selected.k;
}

template <class T>
at::Tensor tensor_of(const std::vector<T>& values) {
  return at::tensor(values, at::TensorOptions(c10::CppTypeToScalarType<T>::value));
}

template <class T>
void read_column(const Tensors& tensors, const std::string& name, std::vector<T>& to, const std::string& path) {
  auto found = tensors.find(name);
  FULGUR_CHECK(
      found != tensors.end() && found->second.dim() == 1 && found->second.scalar_type() == c10::CppTypeToScalarType<T>::value,
      "[batch] ", path, ": expected a list ", name, " of ", c10::toString(c10::CppTypeToScalarType<T>::value), ", got none");
  const T* data = found->second.template const_data_ptr<T>();
  to.assign(data, data + found->second.numel());
}

// What is left of a column: takes the next ones, or says that the file ends.
template <class T>
class Reader {
 public:
  Reader(const std::vector<T>& column, const char* name, const std::string& path) : column_(column), name_(name), path_(path) {}
  std::vector<T> take(int64_t count) {
    FULGUR_CHECK(count >= 0 && count <= int64_t(column_.size() - at_), "[batch] ", path_, ": ", name_, ": expected ", count,
                 " more, got ", column_.size() - at_);
    at_ += size_t(count);
    return {column_.begin() + int64_t(at_) - count, column_.begin() + int64_t(at_)};
  }
  std::vector<T> take_within(int64_t count, int64_t low, int64_t high) {
    auto out = take(count);
    for (T value : out)
      FULGUR_CHECK(int64_t(value) >= low && int64_t(value) < high, "[batch] ", path_, ": ", name_, ": expected ", low, " to ",
                   high - 1, ", got ", value);
    return out;
  }
  void end() const {
    FULGUR_CHECK(at_ == column_.size(), "[batch] ", path_, ": ", name_, ": expected ", at_, " in all, got ", column_.size());
  }

 private:
  const std::vector<T>& column_;
  const char* name_;
  const std::string& path_;
  size_t at_ = 0;
};

// Takes segments off the columns of a file.
class SegmentReader {
 public:
  SegmentReader(const Columns& c, const ModelConfig& config, const std::string& path)
      : config_(config),
        path_(path),
        choices_(c.choices),
        lengths_(c.lengths, "lengths", path),
        draws_(c.draws, "draws", path),
        recorded_(c.recorded, "recorded", path),
        drawn_(c.drawn, "drawn", path),
        version_(c.version, "version", path),
        kept_counts_(c.kept_counts, "kept_counts", path),
        tokens_(c.tokens, "tokens", path),
        kept_(c.kept, "kept", path),
        experts_(c.experts, "experts", path),
        selected_(c.selected, "selected", path),
        log_prob_(c.log_prob, "log_prob", path),
        kept_mass_(c.kept_mass, "kept_mass", path) {
    int64_t mixtures = config.num_hidden_layers - config.first_k_dense_replace;
    bool none = choices_ == std::vector<int64_t>(4, 0);
    FULGUR_CHECK(none || choices_ == std::vector<int64_t>({mixtures, mixtures > 0 ? config.num_experts_per_tok : 0,
                                                           config.num_hidden_layers, config.index_topk}),
                 "[batch] ", path, ": expected choices of this model, got ", joined_numbers(choices_));
  }

  Segment next() {
    Segment s;
    int64_t length = lengths_.take_within(1, 1, kLongest)[0], draws = draws_.take_within(1, 0, kLongest)[0];
    int64_t recorded = recorded_.take_within(1, 0, length)[0];
    s.tokens = tokens_.take_within(length, 0, config_.vocab_size);
    s.drawn = drawn_.take_within(draws, 1, length);
    FULGUR_CHECK(std::adjacent_find(s.drawn.begin(), s.drawn.end(), std::greater_equal<>()) == s.drawn.end(), "[batch] ", path_,
                 ": drawn: expected ascending places");
    FULGUR_CHECK(draws == 0 || recorded >= s.drawn.back(), "[batch] ", path_, ": recorded: expected ", s.drawn.back(),
                 " places, got ", recorded);
    s.version = version_.take_within(draws, 0, std::numeric_limits<int64_t>::max());
    s.log_prob = log_prob_.take(draws), s.kept_mass = kept_mass_.take(draws);
    for (int64_t count : kept_counts_.take_within(draws, 0, config_.vocab_size + 1)) {
      auto kept = kept_.take_within(count, 0, config_.vocab_size);
      int32_t token = s.tokens[s.drawn[s.kept_offsets.size() - 1]];
      FULGUR_CHECK(kept.empty() || std::binary_search(kept.begin(), kept.end(), token), "[batch] ", path_, ": kept: expected ",
                   token, " that was drawn, got others alone");
      append(s.kept, kept), s.kept_offsets.push_back(int32_t(s.kept.size()));
    }
    s.record.experts = choices(experts_, choices_[0], choices_[1], recorded, 0, config_.n_routed_experts);
    s.record.selected = choices(selected_, choices_[2], choices_[3], recorded, -1, recorded);
    return s;
  }

  void end() const {
    lengths_.end(), draws_.end(), recorded_.end(), drawn_.end(), version_.end(), kept_counts_.end(), tokens_.end();
    kept_.end(), experts_.end(), selected_.end(), log_prob_.end(), kept_mass_.end();
  }

 private:
  static Choices choices(Reader<int32_t>& from, int64_t layers, int64_t k, int64_t positions, int64_t low, int64_t high) {
    if (layers == 0 || positions == 0) return {};
    return {layers, positions, k, from.take_within(layers * positions * k, low, high)};
  }
  static std::string joined_numbers(const std::vector<int64_t>& numbers) { return Json(numbers).dump(); }

  const ModelConfig& config_;
  const std::string& path_;
  std::vector<int64_t> choices_;
  Reader<int64_t> lengths_, draws_, recorded_, drawn_, version_, kept_counts_;
  Reader<int32_t> tokens_, kept_, experts_, selected_;
  Reader<float> log_prob_, kept_mass_;
};

}  // namespace

FileSum write_batch(const std::filesystem::path& path, const std::vector<const Member*>& members) {
  Columns columns;
  std::string lines;
  for (const Member* member : members) {
    lines += json_of(*member).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    for (const auto& segment : member->segments) add_segment(columns, segment);
  }
  Tensors tensors;
  columns.visit([&](const char* name, const auto& column) { tensors[name] = tensor_of(column); });
  tensors["members"] = tensor_of(std::vector<uint8_t>(lines.begin(), lines.end()));
  return write_safetensors(path, tensors);
}

std::vector<Member> read_batch(const std::filesystem::path& path, const ModelConfig& config) {
  auto name = path.string();
  auto tensors = read_safetensors(path);
  Columns columns;
  columns.visit([&](const char* key, auto& column) { read_column(tensors, key, column, name); });
  std::vector<uint8_t> bytes;
  read_column(tensors, "members", bytes, name);
  std::string lines(bytes.begin(), bytes.end());
  FULGUR_CHECK(columns.choices.size() == 4, "[batch] ", name, ": choices: expected 4 numbers, got ", columns.choices.size());

  SegmentReader reader(columns, config, name);
  std::vector<Member> members;
  for (size_t begin = 0; begin < lines.size();) {
    auto end = std::min(lines.find('\n', begin), lines.size());
    auto where = cat(name, ": member ", members.size());
    size_t segments = 0;
    members.push_back(member_of(parse_json(lines.substr(begin, end - begin), where), segments, where));
    Member& m = members.back();
    for (size_t i = 0; i < segments; ++i) m.segments.push_back(reader.next());
    int64_t last = segments > 0 ? int64_t(m.segments.back().drawn.size()) : 0;
    FULGUR_CHECK(segments > 0 && m.unfinished <= last, "[batch] ", where, ": expected a segment with ", m.unfinished,
                 " drawn tokens, got ", segments, " with ", last);
    begin = end + 1;
  }
  reader.end();
  return members;
}

}  // namespace fulgur
