#include "fulgur/eval/report.h"

#include <algorithm>
#include <sstream>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/train/metrics.h"

// Put into the program by report_assets.S.
extern "C" const char fulgur_report_html[], fulgur_report_html_end[], fulgur_report_common[], fulgur_report_common_end[],
    fulgur_chart_js[], fulgur_chart_js_end[];

namespace fulgur {
namespace fs = std::filesystem;
namespace {

void replace(std::string& text, std::string_view mark, std::string_view with) {
  auto at = text.find(mark);
  if (at != std::string::npos) text.replace(at, mark.size(), with);
}

// JSON inside a <script> element: "</" must not end it early.
std::string script_json(const Json& json) {
  std::string out, text = json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '<') out += "\\u003c";
    else out += text[i];
  }
  return out;
}

constexpr size_t kEpisodes = 6;  // of the first evaluation and of the last

// {"behind step N": [episodes]}, of the first file and the last.
Json read_episodes(const fs::path& folder) {
  Json out = Json::object();
  if (!fs::is_directory(folder)) return out;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".jsonl") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  if (files.size() > 2) files.erase(files.begin() + 1, files.end() - 1);
  for (const auto& file : files) {
    auto stem = file.stem().string();
    Json& list = out[cat("behind step ", std::atoll(stem.substr(stem.rfind('-') + 1).c_str()))] = Json::array();
    std::istringstream lines(read_file(file));
    for (std::string line; list.size() < kEpisodes && std::getline(lines, line);) list.push_back(parse_json(line, file.string()));
  }
  return out;
}

}  // namespace

const std::vector<Json>& RunRecords::lines(const std::string& stage) const {
  static const std::vector<Json> none;
  auto found = stages.find(stage);
  return found == stages.end() ? none : found->second;
}

RunRecords read_run(const fs::path& run) {
  FULGUR_CHECK(fs::exists(run / "run.json"), "[report] ", run.string(), ": expected a run directory with run.json, got none",
               "\n  hint: give the --out folder of `fulgur speedrun` or `fulgur train`");
  RunRecords out{.name = "", .path = run, .record = read_json(run / "run.json"), .eval = Json(), .stages = {}};
  FULGUR_CHECK(out.record.is_object(), "[report] ", (run / "run.json").string(), ": expected an object, got ",
               out.record.type_name());
  auto full = fs::absolute(run).lexically_normal();
  out.name = (full.has_filename() ? full : full.parent_path()).filename().string();
  if (fs::exists(run / "eval.json")) out.eval = read_json(run / "eval.json");
  for (auto& line : read_metrics(run / "metrics.jsonl")) out.stages[line["stage"].get<std::string>()].push_back(line);
  return out;
}

Json thinned(const std::vector<Json>& lines, size_t points) {
  Json out = Json::array();
  size_t n = lines.size(), stands_for = 0;
  for (size_t i = 0; i < n; ++i) {
    ++stands_for;
    bool keep = i * points / n != (i + 1) * points / n || n <= points || i + 1 == n || lines[i].contains("probe");
    if (!keep) continue;
    out.push_back(lines[i]);
    out.back()["weight"] = stands_for;
    stands_for = 0;
  }
  return out;
}

std::string filled_page(std::string_view page, const Json& data) {
  std::string out(page);
  replace(out, "<!--COMMON-->", {fulgur_report_common, fulgur_report_common_end});
  replace(out, "/*CHART*/", {fulgur_chart_js, fulgur_chart_js_end});
  replace(out, "\"DATA\"", script_json(data));
  return out;
}

fs::path write_report(const fs::path& run, fs::path out) {
  auto records = read_run(run);
  Json data = {{"run", records.record}, {"metrics", Json::array()}};
  data["run"]["name"] = records.name;
  for (const auto& [stage, lines] : records.stages)
    for (const auto& line : thinned(lines, 300)) data["metrics"].push_back(line);
  if (!records.eval.is_null()) data["eval"] = records.eval;
  Json episodes = read_episodes(run / "episodes");
  if (!episodes.empty()) data["episodes"] = episodes;
  if (out.empty()) out = run / "report.html";
  write_file_atomic(out, filled_page({fulgur_report_html, fulgur_report_html_end}, data));
  return out;
}

}  // namespace fulgur
