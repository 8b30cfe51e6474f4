#include "fulgur/io/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/json.h"

namespace fulgur {
namespace {

struct Type {
  const char* name;
  at::ScalarType type;
  size_t size;
};

constexpr Type kTypes[] = {{"F64", at::kDouble, 8},
                           {"F32", at::kFloat, 4},
                           {"F16", at::kHalf, 2},
                           {"BF16", at::kBFloat16, 2},
                           {"F8_E4M3", at::kFloat8_e4m3fn, 1},
                           {"I64", at::kLong, 8},
                           {"I32", at::kInt, 4},
                           {"I16", at::kShort, 2},
                           {"I8", at::kChar, 1},
                           {"U8", at::kByte, 1},
                           {"BOOL", at::kBool, 1}};

struct Entry {
  std::string name;
  const Type* type;
  std::vector<int64_t> shape;
  uint64_t begin, end;
};

// What a header says of one tensor; `where` is "path: tensor name".
Entry parse_entry(const std::string& where, const std::string& name, const Json& json) {
  FULGUR_CHECK(json.is_object() && json.contains("dtype") && json.contains("shape") && json.contains("data_offsets"),
               "[safetensors] ", where, ": expected dtype, shape and data_offsets, got ", json.dump().substr(0, 100));
  Entry entry{name, nullptr, {}, 0, 0};
  for (const Type& type : kTypes)
    if (json["dtype"] == type.name) entry.type = &type;
  FULGUR_CHECK(entry.type, "[safetensors] ", where, ": expected a known dtype, got ", json["dtype"].dump());
  const Json& shape = json["shape"];
  const Json& offsets = json["data_offsets"];
  FULGUR_CHECK(shape.is_array() && shape.size() <= 16, "[safetensors] ", where, ": expected a shape of at most 16 sizes, got ",
               shape.dump().substr(0, 100));
  FULGUR_CHECK(offsets.is_array() && offsets.size() == 2 && offsets[0].is_number_unsigned() && offsets[1].is_number_unsigned(),
               "[safetensors] ", where, ": expected two data_offsets, got ", offsets.dump().substr(0, 100));
  entry.begin = offsets[0].get<uint64_t>(), entry.end = offsets[1].get<uint64_t>();
  uint64_t bytes = entry.type->size, stride = bytes;  // an empty tensor has strides too
  for (const Json& size : shape) {
    FULGUR_CHECK(size.is_number_unsigned() && size.get<uint64_t>() <= uint64_t(INT64_MAX), "[safetensors] ", where,
                 ": expected sizes of 0 or more, got ", size.dump().substr(0, 100));
    bool fits = !__builtin_mul_overflow(bytes, size.get<uint64_t>(), &bytes) &&
                !__builtin_mul_overflow(stride, std::max<uint64_t>(size.get<uint64_t>(), 1), &stride) &&
                stride <= uint64_t(INT64_MAX);
    FULGUR_CHECK(fits, "[safetensors] ", where, ": expected a shape that fits in memory, got ", shape.dump());
    entry.shape.push_back(size.get<int64_t>());
  }
  FULGUR_CHECK(entry.end >= entry.begin && entry.end - entry.begin == bytes, "[safetensors] ", where, ": expected ", bytes,
               " bytes for ", entry.type->name, " ", shape.dump(), ", got data_offsets ", offsets.dump());
  return entry;
}

// A JSON object may say a key twice; the parser would keep one and hide the other.
Json parse_header(std::string_view text, const std::string& path) {
  std::vector<std::set<std::string>> keys;
  bool repeated = false;
  auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) repeated |= !keys.back().insert(parsed.get<std::string>()).second;
    return true;
  };
  Json header = parse_json(text, path + ": header", watch);
  FULGUR_CHECK(!repeated, "[safetensors] ", path, ": expected each tensor once, got a name twice");
  FULGUR_CHECK(header.is_object(), "[safetensors] ", path, ": expected a JSON object as header, got ", header.type_name());
  return header;
}

std::vector<Entry> parse_entries(const Json& header, uint64_t data_bytes, const std::string& path) {
  std::vector<Entry> entries;
  for (const auto& [name, json] : header.items())
    if (name != "__metadata__") entries.push_back(parse_entry(path + ": tensor " + name, name, json));
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  uint64_t expected = 0;
  for (const Entry& entry : entries) {
    FULGUR_CHECK(entry.begin == expected, "[safetensors] ", path, ": tensor ", entry.name, ": expected data from byte ", expected,
                 ", got ", entry.begin, "\n  hint: data may neither overlap nor leave holes");
    expected = entry.end;
  }
  FULGUR_CHECK(expected == data_bytes, "[safetensors] ", path, ": expected ", expected, " bytes of data, got ", data_bytes,
               expected > data_bytes ? "\n  hint: the file is cut off; copy or download it again" : "");
  return entries;
}

const Type& type_of(const at::Tensor& tensor, const std::string& name) {
  for (const Type& type : kTypes)
    if (type.type == tensor.scalar_type()) return type;
  throw InputError(cat("[safetensors] tensor ", name, ": expected a type the format has, got ", tensor.scalar_type()));
}

}  // namespace

Tensors map_safetensors(const std::filesystem::path& path) {
  auto file = std::make_shared<const MappedFile>(path);
  auto bytes = file->bytes();
  FULGUR_CHECK(bytes.size() >= 8, "[safetensors] ", path.string(), ": expected at least 8 bytes, got ", bytes.size(),
               "\n  hint: the file is cut off; copy or download it again");
  uint64_t header_size;
  std::memcpy(&header_size, bytes.data(), 8);
  FULGUR_CHECK(header_size <= bytes.size() - 8, "[safetensors] ", path.string(), ": expected a header of at most ",
               bytes.size() - 8, " bytes, got ", header_size, "\n  hint: the file is cut off, or not a safetensors file");
  auto header = parse_header({reinterpret_cast<const char*>(bytes.data()) + 8, size_t(header_size)}, path.string());
  auto data = bytes.subspan(8 + header_size);
  Tensors out;
  for (const Entry& entry : parse_entries(header, data.size(), path.string()))
    out[entry.name] = at::from_blob(
        const_cast<std::byte*>(data.data()) + entry.begin, entry.shape, [file](void*) {},
        at::TensorOptions().dtype(entry.type->type));
  return out;
}

Tensors read_safetensors(const std::filesystem::path& path) {
  Tensors out = map_safetensors(path);
  for (auto& [name, tensor] : out) {
    auto copy = at::empty(tensor.sizes(), tensor.options());  // in a file they may lie at any byte
    if (tensor.numel() > 0) std::memcpy(copy.mutable_data_ptr(), tensor.const_data_ptr(), copy.nbytes());
    tensor = copy;
  }
  return out;
}

Tensors read_weights(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(path)) return read_safetensors(path);
  if (fs::exists(path / "model.safetensors")) return read_safetensors(path / "model.safetensors");
  auto index_path = path / "model.safetensors.index.json";
  FULGUR_CHECK(fs::exists(index_path), "[weights] ", path.string(),
               ": expected model.safetensors or model.safetensors.index.json, got neither");
  auto index = read_json(index_path);
  FULGUR_CHECK(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(), "[weights] ",
               index_path.string(), ": expected an object weight_map, got none");
  std::set<std::string> shards;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    FULGUR_CHECK(shard.is_string() && fs::path(shard.get<std::string>()).filename() == shard.get<std::string>(), "[weights] ",
                 index_path.string(), ": tensor ", name, ": expected a file name, got ", shard.dump());
    shards.insert(shard.get<std::string>());
  }
  Tensors out;
  for (const auto& shard : shards) out.merge(read_safetensors(path / shard));
  for (const auto& [name, shard] : index["weight_map"].items())
    FULGUR_CHECK(out.contains(name), "[weights] ", index_path.string(), ": expected tensor ", name, " in ", shard.dump(),
                 ", got none");
  return out;
}

FileSum write_safetensors(const std::filesystem::path& path, const Tensors& tensors,
                          const std::map<std::string, std::string>& metadata) {
  constexpr uint64_t kLine = 64;
  auto bytes_of = [](const at::Tensor& tensor) { return uint64_t(tensor.numel()) * tensor.element_size(); };
  std::vector<const Tensors::value_type*> order;
  for (const auto& entry : tensors) order.push_back(&entry);
  std::stable_partition(order.begin(), order.end(), [&](const auto* entry) { return bytes_of(entry->second) % kLine == 0; });
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const auto* entry : order) {
    const auto& [name, tensor] = *entry;
    uint64_t end = offset + bytes_of(tensor);
    header[name] = {{"dtype", type_of(tensor, name).name}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append(kLine - 1 - (text.size() + 8 - 1) % kLine, ' ');
  return write_file_atomic(path, [&](const WriteBytes& write) {
    uint64_t size = text.size();
    write(&size, 8);
    write(text.data(), text.size());
    for (const auto* entry : order) {
      auto whole = entry->second.contiguous();
      write(whole.const_data_ptr(), bytes_of(whole));
    }
  });
}

std::map<std::string, FileSum> write_weights(const std::filesystem::path& folder, const Tensors& tensors, int64_t shard_bytes) {
  std::vector<Tensors> shards(1);
  int64_t in_shard = 0, total = 0;
  for (const auto& [name, tensor] : tensors) {
    int64_t bytes = tensor.numel() * int64_t(tensor.element_size());
    if (in_shard > 0 && in_shard + bytes > shard_bytes) shards.emplace_back(), in_shard = 0;
    shards.back()[name] = tensor;
    in_shard += bytes, total += bytes;
  }
  if (shards.size() == 1)
    return {{"model.safetensors", write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}})}};
  std::map<std::string, FileSum> sums;
  Json map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    char file[64];
    std::snprintf(file, sizeof file, "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    sums[file] = write_safetensors(folder / file, shards[i], {{"format", "pt"}});
    for (const auto& [name, tensor] : shards[i]) map[name] = file;
  }
  Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  sums["model.safetensors.index.json"] = write_file_atomic(folder / "model.safetensors.index.json", index.dump(2));
  return sums;
}

}  // namespace fulgur
