// Two small runs, written by hand: what their comparison must say.
#include "fulgur/eval/compare.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"

namespace fulgur {
namespace {
namespace fs = std::filesystem;

class Compare : public testing::Test {
 protected:
  void TearDown() override { fs::remove_all(folder); }

  // Losses of a stage, a step each.
  using Losses = std::map<std::string, std::vector<double>>;
  fs::path make_run(const std::string& name, const Losses& stages, const Json& recipe) {
    auto run = folder / name;
    fs::create_directories(run);
    Json record = {{"recipe", recipe}, {"machine", {{"threads", 2}}}, {"steps", {{"evaluate", double(name.size())}}}};
    write_file_atomic(run / "run.json", record.dump());
    std::string lines;
    for (const auto& [stage, losses] : stages)
      for (size_t step = 0; step < losses.size(); ++step)
        lines +=
            Json{{"stage", stage}, {"step", step}, {"tokens", 64 * (step + 1)}, {"loss", losses[step]}, {"seconds", 0.5}}.dump() +
            "\n";
    write_file_atomic(run / "metrics.jsonl", lines);
    return run;
  }

  fs::path folder = fs::temp_directory_path() / cat("fulgur-compare-test-", getpid());
};

TEST_F(Compare, EqualRunsHaveIdenticalLossesAndNoDifferingSetting) {
  Losses losses{{"pretrain", {3.1, 0.1 + 0.2}}};
  auto a = make_run("a", losses, {{"seed", 1}}), b = make_run("b", losses, {{"seed", 1}});
  auto summary = compare_runs({a, b});
  EXPECT_EQ(summary["report"], (a / "compare.html").string());
  EXPECT_TRUE(fs::exists(a / "compare.html"));
  ASSERT_EQ(summary["losses"].size(), 1u);
  EXPECT_EQ(summary["losses"][0]["identical"], true);
  EXPECT_EQ(summary["losses"][0]["says"], "identical bit for bit in all 2 steps");
  EXPECT_TRUE(summary["settings"].empty());
  EXPECT_NE(comparison_text(summary).find("all settings of run.json are equal"), std::string::npos);
}

TEST_F(Compare, TheFirstDifferingStepIsFoundWhereOneBitDiffers) {
  auto a = make_run("a", {{"pretrain", {3, 0.3, 2, 1}}}, Json::object());
  auto b = make_run("b", {{"pretrain", {3, 0.1 + 0.2, 2.5}}}, Json::object());
  auto summary = compare_runs({a, b}, folder / "page.html");
  EXPECT_TRUE(fs::exists(folder / "page.html"));
  const auto& line = summary["losses"][0];
  EXPECT_EQ(line["identical"], false);
  EXPECT_EQ(line["first_step"], 1);
  EXPECT_EQ(line["first_loss"], "loss");
  EXPECT_EQ(line["steps"], 3);
  EXPECT_EQ(line["largest"], (Json{{"loss", {{"difference", 0.5}, {"step", 2}}}}));
  EXPECT_EQ(line["says"], "first differ at step 1; largest difference: loss 0.5 at step 2; in the 3 steps both have, of 4 and 3");
}

TEST_F(Compare, OnlySettingsThatDifferAreListedAndTimesAreNone) {
  auto a = make_run("a", {}, {{"seed", 1}, {"pretrain", {{"lr", 3e-3}, {"clip", 1.0}}}});
  auto b = make_run("longer", {}, {{"seed", 1}, {"pretrain", {{"lr", 1e-3}, {"clip", 1.0}}}, {"text", "kjv"}});
  Json expected = Json::array(
      {{{"key", "recipe.pretrain.lr"}, {"values", {3e-3, 1e-3}}}, {{"key", "recipe.text"}, {"values", {nullptr, "kjv"}}}});
  EXPECT_EQ(compare_runs({a, b})["settings"], expected);
}

TEST_F(Compare, AStartOnAnotherMachineIsASetting) {
  auto a = make_run("a", {}, {}), b = make_run("b", {}, {});
  Json record = read_json(b / "run.json");
  record["starts"] = Json::array({{{"stage", "sparse"}, {"machine", {{"threads", 2}}}},
                                  {{"stage", "sparse"}, {"machine", {{"threads", 2}, {"isa", "avx2"}}}}});
  write_file_atomic(b / "run.json", record.dump());
  Json expected = Json::array({{{"key", "starts.sparse.1.machine.isa"}, {"values", {nullptr, "avx2"}}}});
  EXPECT_EQ(compare_runs({a, b})["settings"], expected);
}

TEST_F(Compare, FiguresCarryTheDifferenceToTheFirstRun) {
  auto a = make_run("a", {{"sparse", {4, 2}}}, {}), b = make_run("b", {{"sparse", {3, 2}}}, {});
  auto c = make_run("c", {{"warmup", {1}}}, {});
  auto summary = compare_runs({a, b, c});
  for (const auto& row : summary["figures"])
    if (row["stage"] == "sparse" && row["figure"] == "loss") {
      EXPECT_EQ(row["values"], (Json{3.0, 2.5, nullptr}));
      EXPECT_EQ(row["differences"], (Json{0.0, -0.5, nullptr}));
    }
  EXPECT_EQ(summary["figures"][0]["stage"], "warmup");
  EXPECT_NE(comparison_text(summary).find("-0.5000"), std::string::npos) << comparison_text(summary);
}

TEST_F(Compare, RunsWithoutACommonStageStillGetAPageThatSaysSo) {
  auto a = make_run("a", {{"pretrain", {1}}}, {}), b = make_run("b", {{"sparse", {1}}}, {});
  auto summary = compare_runs({a, b});
  EXPECT_TRUE(summary["common_stages"].empty());
  EXPECT_EQ(summary["losses"][0]["says"], "b has no such stage");
  EXPECT_EQ(summary["losses"][0]["identical"], nullptr);
  EXPECT_NE(comparison_text(summary).find("no stage is common to all runs"), std::string::npos);
  EXPECT_TRUE(fs::exists(a / "compare.html"));
}

TEST_F(Compare, NothingARunWroteEndsTheScript) {
  auto clean = make_run("a", {{"pretrain", {1}}}, {{"text", "x"}});
  auto evil = make_run("b", {{"</script><b>", {1}}}, {{"</ScRiPt>", "</script><script>alert(1)</script>"}});
  auto scripts = [&](const fs::path& other) {
    compare_runs({clean, other});
    auto page = read_file(clean / "compare.html");
    for (char& c : page) c = char(std::tolower(c));
    int count = 0;
    for (size_t at = 0; (at = page.find("</script", at)) != std::string::npos; ++at) ++count;
    return count;
  };
  EXPECT_EQ(scripts(evil), scripts(clean));
}

TEST_F(Compare, AFolderThatIsNoRunIsNamed) {
  auto a = make_run("a", {}, {});
  try {
    compare_runs({a, folder / "none"});
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("none: expected a run directory with run.json, got none"), std::string::npos);
  }
  EXPECT_FALSE(fs::exists(a / "compare.html"));
}

}  // namespace
}  // namespace fulgur
