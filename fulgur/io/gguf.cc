#include "fulgur/io/gguf.h"

#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <charconv>
#include <cmath>
#include <cstring>

#include "fulgur/base/error.h"
#include "fulgur/base/utf8.h"

namespace fulgur {
namespace {

float half(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return c10::Half(bits, c10::Half::from_bits());
}

using Dequantize = void (*)(const uint8_t*, float*);

void from_f32(const uint8_t* at, float* to) { std::memcpy(to, at, 4); }
void from_f16(const uint8_t* at, float* to) { *to = half(at); }
void from_bf16(const uint8_t* at, float* to) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  *to = c10::BFloat16(bits, c10::BFloat16::from_bits());
}

// Blocks of 32: the low halves of the bytes, then the high ones.
void from_q4_0(const uint8_t* at, float* to) {
  float d = half(at);
  for (int i = 0; i < 32; ++i) to[i] = d * float(int(at[2 + i % 16] >> 4 * (i / 16) & 15) - 8);
}
void from_q4_1(const uint8_t* at, float* to) {
  float d = half(at), m = half(at + 2);
  for (int i = 0; i < 32; ++i) to[i] = d * float(at[4 + i % 16] >> 4 * (i / 16) & 15) + m;
}
void from_q8_0(const uint8_t* at, float* to) {
  float d = half(at);
  for (int i = 0; i < 32; ++i) to[i] = float(int8_t(at[2 + i])) * d;
}

// Blocks of 256 in eight groups, whose scales and offsets have six bits each.
void from_q4_k(const uint8_t* at, float* to) {
  float d = half(at), dmin = half(at + 2);
  const uint8_t *packed = at + 4, *values = at + 16;
  for (int group = 0; group < 8; ++group) {
    int low = group % 4, scale, offset;
    if (group < 4) scale = packed[low] & 63, offset = packed[4 + low] & 63;
    else scale = (packed[8 + low] & 15) | (packed[low] >> 2 & 48), offset = packed[8 + low] >> 4 | (packed[4 + low] >> 2 & 48);
    float step = d * float(scale), below = dmin * float(offset);
    for (int i = 0; i < 32; ++i) to[32 * group + i] = step * float(values[group / 2 * 32 + i] >> 4 * (group % 2) & 15) - below;
  }
}

// Blocks of 256 in sixteen groups: four bits of each value, then two, the groups' scales, and the scale of all.
void from_q6_k(const uint8_t* at, float* to) {
  const uint8_t *four = at, *two = at + 128;
  const auto* scales = reinterpret_cast<const int8_t*>(at + 192);
  float d = half(at + 208);
  for (int i = 0; i < 256; ++i) {
    int part = i / 128, rest = i % 128, group = i / 16;
    int low = four[part * 64 + rest % 64] >> 4 * (rest / 64) & 15, high = two[part * 32 + rest % 32] >> 2 * (rest / 32) & 3;
    to[i] = d * float(scales[group]) * float((low | high << 4) - 32);
  }
}

struct Type {
  uint32_t number;
  const char* name;
  int64_t values, bytes;  // of a block
  Dequantize dequantize;
};
constexpr Type kTypes[] = {{0, "F32", 1, 4, from_f32},        {1, "F16", 1, 2, from_f16},     {2, "Q4_0", 32, 18, from_q4_0},
                           {3, "Q4_1", 32, 20, from_q4_1},    {8, "Q8_0", 32, 34, from_q8_0}, {12, "Q4_K", 256, 144, from_q4_k},
                           {14, "Q6_K", 256, 210, from_q6_k}, {30, "BF16", 1, 2, from_bf16}};

const Type* type_of(uint32_t number) {
  for (const auto& type : kTypes)
    if (type.number == number) return &type;
  return nullptr;
}

// 1e-6, say: the shortest text that is this float, not what the float is to the last digit.
double as_written(float value) {
  char text[32];
  double out = value;
  if (std::isfinite(value)) std::from_chars(text, std::to_chars(text, text + sizeof text, value).ptr, out);
  return out;
}

}  // namespace

// Numbers and texts one after another, from the file's beginning.
class Gguf::Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& name)
      : bytes_(reinterpret_cast<const char*>(bytes.data()), bytes.size()),
        name_(name) {}

  template <class T>
  T number() {
    T out;
    std::memcpy(&out, take(sizeof(T), "a number").data(), sizeof(T));
    return out;
  }
  std::string text() {
    auto size = number<uint64_t>();
    return valid_utf8(take(size, "a text"));
  }

  // A value of one of GGUF's types, which come numbered.
  Json value(uint32_t type, int depth = 0) {
    switch (type) {
      case 0:
        return number<uint8_t>();
      case 1:
        return number<int8_t>();
      case 2:
        return number<uint16_t>();
      case 3:
        return number<int16_t>();
      case 4:
        return number<uint32_t>();
      case 5:
        return number<int32_t>();
      case 6:
        return as_written(number<float>());
      case 7:
        return number<uint8_t>() != 0;
      case 8:
        return text();
      case 10:
        return number<uint64_t>();
      case 11:
        return number<int64_t>();
      case 12:
        return number<double>();
      case 9:
        break;
      default:
        fail(cat("a type of value from 0 to 12"), cat(type));
    }
    auto of = number<uint32_t>();
    auto count = number<uint64_t>();
    if (depth > 3 || count > bytes_.size() - at_) fail("an array that the file can hold", cat(count, " values"));
    Json out = Json::array();
    for (uint64_t i = 0; i < count; ++i) out.push_back(value(of, depth + 1));
    return out;
  }

  uint64_t at() const { return at_; }
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const {
    throw InputError(cat("[gguf] ", name_, ": byte ", at_, ": expected ", expected, ", got ", got));
  }

 private:
  std::string_view take(uint64_t size, const char* what) {
    if (size > bytes_.size() - at_)
      fail(cat(what, " of ", size, " bytes"), "the file's end\n  hint: the file is cut off; copy or download it again");
    auto out = bytes_.substr(at_, size);
    at_ += size;
    return out;
  }

  std::string_view bytes_;
  const std::string& name_;
  uint64_t at_ = 0;
};

Gguf::Gguf(const std::filesystem::path& path) : name_(path.string()), file_(path) {
  Reader reader(file_.bytes(), name_);
  if (auto magic = reader.number<uint32_t>(); magic != 0x46554747) reader.fail("the letters GGUF", cat(magic));
  if (auto version = reader.number<uint32_t>(); version != 2 && version != 3) reader.fail("version 2 or 3", cat(version));
  auto tensors = reader.number<uint64_t>(), keys = reader.number<uint64_t>();
  uint64_t size = file_.bytes().size();
  if (tensors > size / 24 || keys > size / 12)
    reader.fail("tensors and keys that the file can hold", cat(tensors, " and ", keys));
  for (uint64_t i = 0; i < keys; ++i) {
    auto key = reader.text();
    if (metadata_.contains(key)) reader.fail("each key once", key);
    metadata_[key] = reader.value(reader.number<uint32_t>());
  }
  for (uint64_t i = 0; i < tensors; ++i) {
    auto tensor = reader.text();
    auto dimensions = reader.number<uint32_t>();
    if (dimensions > 4) reader.fail(cat("at most 4 sizes of tensor ", tensor), cat(dimensions));
    Entry entry;
    uint64_t values = 1;
    for (uint32_t d = 0; d < dimensions; ++d) {
      auto length = reader.number<uint64_t>();
      if (length == 0 || length > size * 64 || __builtin_mul_overflow(values, length, &values) || values > size * 64)
        reader.fail(cat("a size of tensor ", tensor, " that the file can hold"), cat(length));
      entry.shape.insert(entry.shape.begin(), int64_t(length));
    }
    entry.type = reader.number<uint32_t>();
    entry.begin = reader.number<uint64_t>();
    const Type* type = type_of(entry.type);
    if (!type)
      reader.fail(cat("tensor ", tensor, " of a type F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K or Q6_K"), cat("type ", entry.type));
    if (!entry.shape.empty() && entry.shape.back() % type->values != 0)
      reader.fail(cat("rows of tensor ", tensor, " in blocks of ", type->values), cat(entry.shape.back(), " values"));
    entry.bytes = values / uint64_t(type->values) * uint64_t(type->bytes);
    if (!tensors_.emplace(tensor, entry).second) reader.fail("each tensor once", tensor);
  }
  uint64_t alignment = has("general.alignment") ? uint64_t(integer("general.alignment")) : 32;
  if (alignment == 0 || alignment > 1 << 20) reader.fail("an alignment of 1 to 1 MB", cat(alignment));
  uint64_t data = (reader.at() + alignment - 1) / alignment * alignment;
  for (auto& [tensor, entry] : tensors_) {
    FULGUR_CHECK(entry.begin <= size && data + entry.begin <= size && entry.bytes <= size - data - entry.begin, "[gguf] ", name_,
                 ": tensor ", tensor, ": expected ", entry.bytes, " bytes from byte ", data + entry.begin, " on, got a file of ",
                 size, "\n  hint: the file is cut off; copy or download it again");
    entry.begin += data;
  }
}

const Json& Gguf::value(const std::string& key) const {
  auto found = metadata_.find(key);
  FULGUR_CHECK(found != metadata_.end(), "[gguf] ", name_, ": expected ", key, ", got none");
  return *found;
}

int64_t Gguf::integer(const std::string& key) const {
  const Json& out = value(key);
  FULGUR_CHECK(out.is_number_integer(), "[gguf] ", name_, ": ", key, ": expected a whole number, got ",
               out.dump().substr(0, 100));
  return out;
}
double Gguf::number(const std::string& key) const {
  const Json& out = value(key);
  FULGUR_CHECK(out.is_number(), "[gguf] ", name_, ": ", key, ": expected a number, got ", out.dump().substr(0, 100));
  return out;
}
std::string Gguf::text(const std::string& key) const {
  const Json& out = value(key);
  FULGUR_CHECK(out.is_string(), "[gguf] ", name_, ": ", key, ": expected a text, got ", out.dump().substr(0, 100));
  return out;
}
std::vector<std::string> Gguf::texts(const std::string& key) const {
  std::vector<std::string> out;
  for (const Json& item : value(key)) {
    FULGUR_CHECK(item.is_string(), "[gguf] ", name_, ": ", key, ": expected texts, got ", item.dump().substr(0, 100));
    out.push_back(item);
  }
  return out;
}
std::vector<int32_t> Gguf::integers(const std::string& key) const {
  std::vector<int32_t> out;
  for (const Json& item : value(key)) {
    FULGUR_CHECK(item.is_number_integer(), "[gguf] ", name_, ": ", key, ": expected whole numbers, got ",
                 item.dump().substr(0, 100));
    out.push_back(item);
  }
  return out;
}

at::Tensor Gguf::read(const std::string& tensor) const {
  auto found = tensors_.find(tensor);
  FULGUR_CHECK(found != tensors_.end(), "[gguf] ", name_, ": expected tensor ", tensor, ", got none");
  const Entry& entry = found->second;
  const Type& type = *type_of(entry.type);
  auto out = at::empty(entry.shape, at::TensorOptions().dtype(at::kFloat));
  const auto* from = reinterpret_cast<const uint8_t*>(file_.bytes().data()) + entry.begin;
  float* to = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < out.numel() / type.values; ++i) type.dequantize(from + i * type.bytes, to + i * type.values);
  return out;
}

}  // namespace fulgur
