#include "fulgur/io/safetensors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/random.h"

namespace fulgur {
namespace {
namespace fs = std::filesystem;

class Safetensors : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder); }
  void TearDown() override { fs::remove_all(folder); }

  // A file with this header and so many bytes of data.
  fs::path file(const std::string& header, size_t data_bytes, int64_t header_size = -1) {
    uint64_t size = header_size < 0 ? header.size() : uint64_t(header_size);
    std::string bytes(reinterpret_cast<const char*>(&size), 8);
    write_file_atomic(path, bytes + header + std::string(data_bytes, 'x'));
    return path;
  }
  // The one line a reader says about it.
  std::string complaint(const fs::path& of) {
    try {
      read_safetensors(of);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  }

  fs::path folder = fs::temp_directory_path() / cat("fulgur-safetensors-", getpid());
  fs::path path = folder / "x.safetensors";
};

TEST_F(Safetensors, EveryTypeComesBackEqual) {
  Tensors out;
  for (auto type :
       {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort, at::kChar, at::kByte, at::kBool})
    out[cat("t.", type)] = at::arange(6).to(type).view({2, 3});
  out["scalar"] = at::full({}, 3.5f);
  out["empty"] = at::empty({0, 4});
  write_safetensors(path, out, {{"format", "pt"}});
  auto in = read_safetensors(path);
  ASSERT_EQ(in.size(), out.size());
  for (auto& [name, tensor] : out) {
    EXPECT_EQ(in.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(in.at(name), tensor)) << name;
  }
}

TEST_F(Safetensors, ShardsWithAnIndexAreReadAsOne) {
  Tensors out;
  for (int i = 0; i < 5; ++i) out[cat("w", i)] = at::full({100}, float(i));
  write_weights(folder, out, /*shard_bytes=*/1000);
  EXPECT_TRUE(fs::exists(folder / "model.safetensors.index.json"));
  auto in = read_weights(folder);
  ASSERT_EQ(in.size(), 5u);
  for (auto& [name, tensor] : out) EXPECT_TRUE(at::equal(in.at(name), tensor));
}

TEST_F(Safetensors, LiesAreNamedInOneLine) {
  struct Lie {
    std::string header;
    size_t data;
    std::string says;
  };
  for (const Lie& lie : std::vector<Lie>{
           {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4, "expected 8 bytes of data, got 4"},
           {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 12, "got 12"},
           {R"({"a":{"dtype":"F77","shape":[2],"data_offsets":[0,8]}})", 8, "expected a known dtype, got \"F77\""},
           {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, "expected 12 bytes for F32"},
           {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, "got data_offsets [8,0]"},
           {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8,
            "overlap"},
           {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "expected data from byte 0, got 4"},
           {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "expected sizes of 0 or more"},
           {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0, "fits in memory"},
           {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
            "a name twice"},
           {R"({"a":[]})", 0, "expected dtype, shape and data_offsets"},
           {R"([1])", 0, "expected a JSON object as header"},
           {R"({"a":)", 0, "header: expected JSON"}}) {
    auto said = complaint(file(lie.header, lie.data));
    EXPECT_NE(said.find(lie.says), std::string::npos) << lie.header << "\n" << said;
    EXPECT_NE(said.find(path.string()), std::string::npos) << said;
  }
  EXPECT_NE(complaint(file("{}", 0, 1000)).find("expected a header of at most 2 bytes, got 1000"), std::string::npos);
  write_file_atomic(path, "abc");
  EXPECT_NE(complaint(path).find("expected at least 8 bytes, got 3"), std::string::npos);
  EXPECT_NE(complaint(folder / "none").find("none"), std::string::npos);
}

// Any bytes at all: tensors or one InputError, never anything else.
TEST_F(Safetensors, MutatedFilesNeverDoWorseThanAnError) {
  write_safetensors(path, {{"a", at::ones({3, 5})}, {"b.c", at::arange(7)}});
  const std::string good = read_file(path);
  RandomStream random(1, "safetensors");
  int read = 0, refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = good;
    for (uint64_t edits = 1 + random.below(4); edits > 0; --edits) {
      size_t at = random.below(random.below(2) ? 160 : bytes.size()) % bytes.size();
      if (random.below(8) == 0) bytes.resize(at + 1);
      else bytes[at] = random.below(3) ? char("0123456789,:[]{}\"-e"[random.below(19)]) : char(random.below(256));
    }
    write_file_atomic(path, bytes);
    try {
      read_safetensors(path), ++read;
    } catch (const InputError&) {
      ++refused;
    }
  }
  EXPECT_GT(read, 100);
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace fulgur
