#include "fulgur/eval/report.h"

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/json.h"
#include "fulgur/train/metrics.h"

// Put into the program by report_assets.S.
extern "C" const char fulgur_report_html[], fulgur_report_html_end[], fulgur_chart_js[], fulgur_chart_js_end[];

namespace fulgur {
namespace fs = std::filesystem;
namespace {

void replace(std::string& text, const std::string& mark, const std::string& with) {
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

// At most about `points` lines a stage, evenly spaced; lines with a probe always stay. "weight": steps a line stands for.
Json thinned(const std::vector<Json>& lines, size_t points) {
  std::map<std::string, size_t> total, seen;
  std::map<std::string, double> skipped;
  for (const auto& line : lines) ++total[line.value("stage", "")];
  Json out = Json::array();
  for (const auto& line : lines) {
    auto stage = line.value("stage", "");
    size_t i = seen[stage]++, n = total[stage];
    skipped[stage] += 1;
    bool keep = i * points / n != (i + 1) * points / n || n <= points || i + 1 == n || line.contains("probe");
    if (!keep) continue;
    out.push_back(line);
    out.back()["weight"] = skipped[stage];
    skipped[stage] = 0;
  }
  return out;
}

}  // namespace

fs::path write_report(const fs::path& run) {
  FULGUR_CHECK(fs::exists(run / "run.json"), "[report] ", run.string(), ": expected a run directory with run.json, got none",
               "\n  hint: give the --out folder of `fulgur speedrun` or `fulgur train`");
  Json data = {{"run", read_json(run / "run.json")}, {"metrics", thinned(read_metrics(run / "metrics.jsonl"), 300)}};
  data["run"]["name"] = fs::absolute(run).lexically_normal().filename().string();
  if (fs::exists(run / "eval.json")) data["eval"] = read_json(run / "eval.json");
  std::string page(fulgur_report_html, fulgur_report_html_end);
  replace(page, "/*CHART*/", std::string(fulgur_chart_js, fulgur_chart_js_end));
  replace(page, "\"DATA\"", script_json(data));
  auto path = run / "report.html";
  write_file_atomic(path, page);
  return path;
}

}  // namespace fulgur
