#include "fulgur/eval/compare.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>
#include <set>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/eval/report.h"
#include "fulgur/train/metrics.h"

// Put into the program by report_assets.S.
extern "C" const char fulgur_compare_html[], fulgur_compare_html_end[];

namespace fulgur {
namespace fs = std::filesystem;
namespace {

constexpr size_t kLast = 20;  // one step alone is noise
constexpr char kAveraged[] = "losses, KL, tokens/s: mean of the last 20 steps";

using Lines = std::vector<Json>;

std::vector<RunRecords> read_runs(const std::vector<fs::path>& paths) {
  std::vector<RunRecords> runs;
  std::set<std::string> names;
  for (const auto& path : paths) runs.push_back(read_run(path)), names.insert(runs.back().name);
  if (names.size() < runs.size())
    for (auto& run : runs) run.name = run.path.string();
  return runs;
}

// Stages that any run has: the known ones in their order, then others.
std::vector<std::string> stages_of(const std::vector<RunRecords>& runs) {
  std::set<std::string> any;
  for (const auto& run : runs)
    for (const auto& [stage, lines] : run.stages) any.insert(stage);
  std::vector<std::string> out;
  for (std::string stage : {"pretrain", "warmup", "sparse"})
    if (any.erase(stage)) out.push_back(stage);
  out.insert(out.end(), any.begin(), any.end());
  return out;
}

// The number at a JSON pointer; of a list, such as one value a layer, the mean.
std::optional<double> number(const Json& json, const std::string& pointer) {
  Json::json_pointer at(pointer);
  if (!json.contains(at)) return {};
  const Json& value = json[at];
  if (value.is_number()) return value.get<double>();
  double sum = 0, count = 0;
  if (value.is_array())
    for (const auto& item : value)
      if (item.is_number()) sum += item.get<double>(), ++count;
  if (count == 0) return {};
  return sum / count;
}

// Mean over the last lines that have it.
std::optional<double> last(const Lines& lines, const std::string& pointer, size_t count = kLast) {
  double sum = 0;
  size_t found = 0;
  for (auto line = lines.rbegin(); line != lines.rend() && found < count; ++line)
    if (auto value = number(*line, pointer)) sum += *value, ++found;
  if (found == 0) return {};
  return sum / double(found);
}

double distance(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number()) return std::abs(a.get<double>() - b.get<double>());
  double most = 0;
  if (a.is_array() && b.is_array())
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) most = std::max(most, distance(a[i], b[i]));
  return most;
}

template <class... Values>
std::string format(const char* how, Values... values) {
  char text[64];
  std::snprintf(text, sizeof text, how, values...);
  return text;
}

// Over the steps that both have. metrics.jsonl gives numbers all digits they need: the same text is the same bits.
Json compare_losses(const Lines& first, const Lines& other) {
  std::map<int64_t, const Json*> by_step;
  for (const auto& line : first) by_step[line["step"].get<int64_t>()] = &line;
  Json out = {{"steps", 0}, {"identical", true}}, largest = Json::object();
  size_t steps = 0;
  for (const auto& line : other) {
    auto found = by_step.find(line["step"].get<int64_t>());
    if (found == by_step.end()) continue;
    ++steps;
    for (const char* loss : {"loss", "mtp_loss", "balance", "kl"}) {
      Json a = found->second->value(loss, Json()), b = line.value(loss, Json());
      if (a.dump() == b.dump()) continue;
      if (out["identical"]) out["identical"] = false, out["first_step"] = found->first, out["first_loss"] = loss;
      double difference = distance(a, b), most = largest.contains(loss) ? largest[loss]["difference"].get<double>() : 0;
      if (difference > most) largest[loss] = {{"difference", difference}, {"step", found->first}};
    }
  }
  bool all = first.size() == steps && other.size() == steps;
  auto both =
      all ? cat("all ", steps, " steps") : cat("the ", steps, " steps both have, of ", first.size(), " and ", other.size());
  std::string says = cat("identical bit for bit in ", both);
  if (!out["identical"]) {
    says = cat("first differ at step ", out["first_step"]);
    std::string before = "; largest difference: ";
    for (const auto& [loss, most] : largest.items()) {
      says += cat(before, loss, format(" %.2g", most["difference"].get<double>()), " at step ", most["step"]);
      before = ", ";
    }
    says += "; in " + both;
    out["largest"] = largest;
  }
  out["steps"] = steps;
  if (steps == 0) out["identical"] = nullptr;
  out["says"] = steps == 0 ? "no step that both have" : says;
  return out;
}

// Run by run: a stage of the first run against the same stage of the others.
Json losses(const std::vector<RunRecords>& runs, const std::vector<std::string>& stages) {
  Json out = Json::array();
  for (const auto& stage : stages)
    for (size_t i = 1; i < runs.size(); ++i) {
      Json line = {{"stage", stage}, {"run", runs[i].name}};
      line.update(compare_losses(runs[0].lines(stage), runs[i].lines(stage)));
      for (size_t missing : {size_t(0), i})
        if (runs[missing].lines(stage).empty()) line["says"] = cat(runs[missing].name, " has no such stage");
      out.push_back(line);
    }
  return out;
}

// A stage's part of eval.json.
Json evaluated(const RunRecords& run, const std::string& stage) {
  if (run.eval.is_null()) return Json::object();
  for (const auto& found : run.eval.value("stages", Json::array()))
    if (found.value("stage", "") == stage) return found;
  return Json::object();
}

Json figures(const std::vector<RunRecords>& runs, const std::vector<std::string>& stages) {
  Json out = Json::array();
  auto put = [&](size_t run, const std::string& stage, const std::string& figure, int digits, std::optional<double> value) {
    if (!value) return;
    auto row = std::find_if(out.begin(), out.end(), [&](const Json& r) { return r["stage"] == stage && r["figure"] == figure; });
    if (row == out.end()) {
      std::vector<Json> none(runs.size());
      out.push_back({{"stage", stage}, {"figure", figure}, {"digits", digits}, {"values", none}, {"differences", none}});
      row = out.end() - 1;
    }
    (*row)["values"][run] = *value;
  };
  for (const auto& stage : stages) {
    std::set<int64_t> contexts;  // the longest that each run was evaluated at
    for (const auto& run : runs) {
      int64_t longest = 0;
      for (const auto& p : evaluated(run, stage).value("perplexity", Json::array()))
        longest = std::max(longest, p.value("context", int64_t(0)));
      contexts.insert(longest);
    }
    for (size_t i = 0; i < runs.size(); ++i) {
      const auto& lines = runs[i].lines(stage);
      auto eval = evaluated(runs[i], stage);
      put(i, stage, "loss", 4, last(lines, "/loss"));
      put(i, stage, "bits/byte", 4, last(lines, "/bits_per_byte"));
      put(i, stage, "KL, mean of layers", 4, last(lines, "/kl"));
      put(i, stage, "held-out loss", 4, last(lines, "/valid_loss", 1));
      for (std::string key : {"recall", "mass"})
        if (eval.contains("indexer")) put(i, stage, key, 4, number(eval, "/indexer/" + key));
        else put(i, stage, key + ", last probe", 4, last(lines, "/probe/" + key, 1));
      put(i, stage, "tokens/s", 0, last(lines, "/tokens_per_second"));
      double seconds = 0;
      for (const auto& line : lines) seconds += number(line, "/seconds").value_or(0);
      if (!lines.empty()) put(i, stage, "seconds", 1, seconds);
      for (const auto& p : eval.value("perplexity", Json::array()))
        if (auto context = p.value("context", int64_t(0)); contexts.contains(context))
          put(i, stage, cat("held-out bits/byte, ", p.value("form", ""), ", ", context), 4, number(p, "/bits_per_byte"));
    }
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    Json steps = runs[i].record.value("steps", Json::object());
    for (const auto& [step, seconds] : steps.items()) put(i, "other steps", cat("seconds, ", step), 1, number(seconds, ""));
  }
  for (auto& row : out)
    for (size_t i = 0; i < runs.size(); ++i)
      if (row["values"][0].is_number() && row["values"][i].is_number())
        row["differences"][i] = row["values"][i].get<double>() - row["values"][0].get<double>();
  return out;
}

// run.json without times; its starts by stage, and of their machines what is not the run's own.
Json settings(const Json& record) {
  Json out = record, machine = record.value("machine", Json::object());
  out.erase("steps"), out.erase("starts");
  for (Json start : record.value("starts", Json::array())) {
    if (start.contains("machine"))
      for (const auto& [key, value] : machine.items())
        if (start["machine"].value(key, Json()) == value) start["machine"].erase(key);
    auto stage = start.value("stage", "");
    start.erase("stage");
    out["starts"][stage].push_back(start);
  }
  return out.flatten();
}

Json differing_settings(const std::vector<RunRecords>& runs) {
  std::vector<Json> flat;
  Json keys = Json::object(), out = Json::array();  // in the order they are met
  for (const auto& run : runs) {
    flat.push_back(settings(run.record));
    for (const auto& [key, value] : flat.back().items()) keys[key] = true;
  }
  for (const auto& [key, met] : keys.items()) {
    Json values = Json::array();
    for (const auto& of : flat) values.push_back(of.value(key, Json()));
    if (std::all_of(values.begin(), values.end(), [&](const Json& value) { return value == values[0]; })) continue;
    auto name = key.substr(1);
    std::replace(name.begin(), name.end(), '/', '.');
    out.push_back({{"key", name}, {"values", values}});
  }
  return out;
}

// A figure's value and its difference to the first run, as the page and the console show them.
std::pair<std::string, std::string> cell(const Json& figure, size_t i) {
  const Json &value = figure["values"][i], &by = figure["differences"][i];
  int digits = figure["digits"];
  if (value.is_null()) return {"-", ""};
  auto text = format("%.*f", digits, value.get<double>());
  if (i == 0 || by.is_null()) return {text, ""};
  if (by == 0) return {text, "="};
  bool seen = digits < 2 || std::abs(by.get<double>()) >= 0.5 * std::pow(10, -digits);
  return {text, seen ? format("%+.*f", digits, by.get<double>()) : format("%+.0e", by.get<double>())};
}

std::string cell(const Json& setting) {
  return setting.is_null() ? "-" : setting.is_string() ? setting.get<std::string>() : setting.dump();
}

// What the page draws of a stage's line.
Json curve_point(const Json& line) {
  Json out = {{"tokens", line.value("tokens", Json())}};
  for (std::string key : {"loss", "bits_per_byte", "kl", "grad_norm", "indexer_grad_norm", "tokens_per_second", "probe/recall",
                          "probe/mass", "probe/window_recall", "probe/window_mass"})
    if (auto value = number(line, "/" + key)) out[key.substr(key.find('/') + 1)] = *value;
  return out;
}

std::string page(const std::vector<RunRecords>& runs, const std::vector<std::string>& stages, const Json& summary) {
  Json data = summary;
  data["averaged"] = kAveraged;
  for (auto& row : data["figures"])
    for (size_t i = 0; i < runs.size(); ++i) row["cells"].push_back(Json(cell(row, i)));
  for (auto& row : data["settings"])
    for (size_t i = 0; i < runs.size(); ++i) row["cells"].push_back(cell(row["values"][i]));
  data["stages"] = Json::array();
  for (const auto& stage : stages) {
    Json of_runs = Json::array();
    for (const auto& run : runs) {
      Json points = Json::array();
      for (const auto& line : thinned(run.lines(stage), 300)) points.push_back(curve_point(line));
      of_runs.push_back(points);
    }
    data["stages"].push_back({{"stage", stage}, {"lines", of_runs}});
  }
  return filled_page({fulgur_compare_html, fulgur_compare_html_end}, data);
}

// Columns as wide as their widest cell; the first `left` of them flush left.
std::string text_table(const std::vector<std::vector<std::string>>& rows, size_t left) {
  std::map<size_t, size_t> widths;
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      std::string space(widths[i] - row[i].size(), ' ');
      line += (i ? "  " : "") + (i < left ? row[i] + space : space + row[i]);
    }
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return out;
}

}  // namespace

Json compare_runs(const std::vector<fs::path>& paths, fs::path out) {
  auto runs = read_runs(paths);
  auto stages = stages_of(runs);
  if (out.empty()) out = paths.at(0) / "compare.html";
  Json summary = {{"report", out.string()}, {"runs", Json::array()}, {"common_stages", Json::array()}};
  for (const auto& run : runs) summary["runs"].push_back({{"name", run.name}, {"path", run.path.string()}});
  for (const auto& stage : stages)
    if (std::all_of(runs.begin(), runs.end(), [&](const auto& run) { return !run.lines(stage).empty(); }))
      summary["common_stages"].push_back(stage);
  summary["losses"] = losses(runs, stages);
  summary["figures"] = figures(runs, stages);
  summary["settings"] = differing_settings(runs);
  write_file_atomic(out, page(runs, stages, summary));
  return summary;
}

std::string comparison_text(const Json& summary) {
  size_t runs = summary["runs"].size();
  std::vector<std::vector<std::string>> losses, figures{{"stage", "figure"}}, settings{{"settings that differ"}};
  for (const auto& line : summary["losses"]) losses.push_back({line["stage"], line["run"], line["says"]});
  for (size_t i = 0; i < runs; ++i) {
    settings[0].push_back(summary["runs"][i]["name"]);
    figures[0].push_back(summary["runs"][i]["name"]);
    if (i > 0) figures[0].push_back("");
  }
  for (const auto& row : summary["figures"]) {
    figures.push_back({row["stage"], row["figure"]});
    for (size_t i = 0; i < runs; ++i) {
      auto [value, difference] = cell(row, i);
      figures.back().push_back(value);
      if (i > 0) figures.back().push_back(difference);
    }
  }
  for (const auto& row : summary["settings"]) {
    settings.push_back({row["key"]});
    for (const auto& value : row["values"]) settings.back().push_back(cell(value).substr(0, 40));
  }
  auto first = summary["runs"][0]["name"].get<std::string>();
  return cat("losses, against ", first, "\n", summary["common_stages"].empty() ? "no stage is common to all runs\n" : "",
             text_table(losses, 3), "\nlast figures; ", kAveraged, "\n", text_table(figures, 2), "\n",
             settings.size() > 1 ? text_table(settings, 1) : "all settings of run.json are equal\n");
}

}  // namespace fulgur
