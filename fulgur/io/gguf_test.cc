// Against the gguf package's writer and dequantiser (tests/golden/gguf).
#include "fulgur/io/gguf.h"

#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

const std::string kGolden = FULGUR_GOLDEN "/gguf/";

TEST(Gguf, EveryTypeIsDequantisedExactly) {
  Gguf file(kGolden + "types.gguf"), expected(kGolden + "types-f32.gguf");
  ASSERT_EQ(file.tensors().size(), 8u);
  for (const auto& [name, entry] : file.tensors()) {
    EXPECT_EQ(entry.shape, (std::vector<int64_t>{3, 512}));
    EXPECT_TRUE(at::equal(file.read(name), expected.read(name))) << name;
  }
}

TEST(Gguf, MetadataHasItsTypes) {
  Gguf file(kGolden + "types.gguf");
  EXPECT_EQ(file.text("general.architecture"), "llama");
  EXPECT_EQ(file.text("test.text"), "Grüße");
  EXPECT_EQ(file.number("test.float"), 0.5);
  EXPECT_EQ(file.integer("test.int"), -3);
  EXPECT_EQ(file.integer("test.large"), int64_t(1) << 40);
  EXPECT_EQ(file.metadata()["test.bool"], true);
  EXPECT_EQ(file.texts("test.texts"), (std::vector<std::string>{"a", "é"}));
  EXPECT_EQ(file.integers("test.ints"), (std::vector<int32_t>{1, 2, 3}));
  EXPECT_THROW(file.integer("test.text"), InputError);
  EXPECT_THROW(file.text("none"), InputError);
  EXPECT_THROW(file.read("none"), InputError);
}

TEST(Gguf, EveryCutOfAFileIsRefusedWithItsPlace) {
  auto whole = read_file(kGolden + "types.gguf");
  auto path = std::filesystem::path(testing::TempDir()) / "cut.gguf";
  for (size_t size = 0; size < whole.size(); size += size < 2000 ? 1 : 997) {
    write_file_atomic(path, whole.substr(0, size));
    try {
      Gguf file(path);
      ADD_FAILURE() << size << " bytes were read";
    } catch (const InputError& error) {
      EXPECT_EQ(std::string(error.what()).find("[gguf] " + path.string() + ": "), 0u) << error.what();
    }
  }
}

TEST(Gguf, LiesAreRefused) {
  auto whole = read_file(kGolden + "types.gguf");
  auto path = std::filesystem::path(testing::TempDir()) / "lie.gguf";
  auto with = [&](size_t at, std::string bytes) {
    auto changed = whole;
    changed.replace(at, bytes.size(), bytes);
    write_file_atomic(path, changed);
    return path;
  };
  EXPECT_THROW(Gguf(with(0, "GGML")), InputError);
  EXPECT_THROW(Gguf(with(4, "\x09")), InputError) << "a version";
  EXPECT_THROW(Gguf(with(8, "\xff\xff\xff\x7f")), InputError) << "too many tensors";
  EXPECT_THROW(Gguf(with(16, "\xff\xff\xff\x7f")), InputError) << "too many keys";
  EXPECT_THROW(Gguf(with(whole.find("t.Q4_K") + 6, "\x09")), InputError) << "nine dimensions";
  EXPECT_THROW(Gguf(with(whole.find("t.Q4_K") + 10, std::string("\x01\x02\0\0", 4))), InputError)
      << "rows that are no whole blocks";
  EXPECT_THROW(Gguf(with(whole.find("t.Q4_K") + 26, "\x07")), InputError) << "a type of tensor";
  EXPECT_THROW(Gguf(with(whole.find("t.Q4_K") + 30, std::string("\0\0\0\x40", 4))), InputError) << "data behind the end";
  EXPECT_THROW(Gguf(with(whole.find("t.Q4_K") + 5, "1")), InputError) << "a tensor twice";
}

}  // namespace
}  // namespace fulgur
