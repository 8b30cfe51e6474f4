#include "fulgur/eval/adapt_report.h"

#include <cmath>
#include <cstdio>
#include <functional>
#include <map>

#include "fulgur/base/error.h"
#include "fulgur/base/interval.h"

namespace fulgur {

namespace {

using Documents = std::vector<const Json*>;

std::string format(const char* pattern, double a, double b = 0) {
  char out[64];
  std::snprintf(out, sizeof out, pattern, a, b);
  return out;
}

Spread over(const Documents& documents, const std::function<double(const Json&)>& value) {
  std::vector<double> values;
  for (const auto* document : documents) values.push_back(value(*document));
  return spread(values);
}

// A choice of so many keys: attention on them, and perplexity beyond the dense model's where it was measured.
std::string kept_by(const Documents& documents, size_t keys, const std::string& form) {
  auto mass = over(documents, [&](const Json& d) { return d["keys"][keys]["mass"][form].get<double>(); });
  std::string out = cat(" ", form, " ", format("%.3f", mass.mean));
  for (const auto* document : documents)
    if (!(*document)["keys"][keys]["nll"].contains(form)) return out;
  auto more = over(documents, [&](const Json& d) {
    return 100 * std::expm1(d["keys"][keys]["nll"][form].get<double>() - d["dense"].get<double>());
  });
  return out + format(" (%+.2f +- %.2f %%)", more.mean, more.half);
}

std::string kept_lines(const std::string& kind, const Documents& documents) {
  const Json& first = *documents[0];
  auto dense = over(documents, [](const Json& d) { return d["dense"].get<double>(); });
  auto out = cat(kind.empty() ? "all" : kind, ": ", documents.size(), " documents of ", first["tokens"].get<int64_t>(),
                 " tokens, perplexity dense ", format("%.2f", std::exp(dense.mean)), "\n");
  for (size_t i = 0; i < first["keys"].size(); ++i) {
    out += format("  %5.0f keys   ", first["keys"][i]["k"].get<double>());
    for (const char* form : {"fresh", "taught", "best", "window"}) out += kept_by(documents, i, form);
    out += "\n";
  }
  return out;
}

// Over all documents, and over each kind.
std::string kept_table(const Json& documents) {
  Documents all;
  std::map<std::string, Documents> kinds;
  for (const auto& document : documents) all.push_back(&document), kinds[document["kind"]].push_back(&document);
  auto out = kept_lines("", all);
  for (const auto& [kind, of] : kinds)
    if (kinds.size() > 1) out += kept_lines(kind, of);
  return out;
}

// Perplexity of the trained models against the dense one it began with, and what sparsity costs before and behind training.
std::string trained_table(const Json& trained, const Json& kept) {
  std::string out = cat("trained on with chosen keys, ", trained.size(), " documents\n");
  for (size_t i = 0; i < trained[0]["keys"].size(); ++i) {
    std::vector<double> more, before, behind;
    for (size_t d = 0; d < trained.size(); ++d) {
      double dense = kept[d]["dense"], nll = trained[d]["keys"][i]["nll"];
      more.push_back(100 * std::expm1(nll - dense));
      before.push_back(100 * std::expm1(kept[d]["keys"][i]["nll"]["taught"].get<double>() - dense));
      if (trained[d].contains("twin")) behind.push_back(100 * std::expm1(nll - trained[d]["twin"].get<double>()));
    }
    auto all = spread(more), gap_before = spread(before), gap = spread(behind);
    out += format("  %5.0f keys    perplexity ", trained[0]["keys"][i]["k"].get<double>());
    out += format("%+.2f +- %.2f %% of the dense model's; beyond a dense twin's ", all.mean, all.half);
    if (behind.empty()) out += "not measured (--twin)\n";
    else
      out += format("%+.2f +- %.2f %%, ", gap.mean, gap.half) +
             format("before training %+.2f +- %.2f %%\n", gap_before.mean, gap_before.half);
  }
  return out;
}

}  // namespace

std::string adapt_tables(const Json& record) {
  std::string out =
      "attention kept by the chosen keys (and perplexity, more than dense); means over documents with 95 % intervals\n";
  static const Json kNone = Json::object();
  const Json& kept = record.contains("kept") ? record["kept"] : kNone;
  for (const auto& [context, documents] : kept.items()) out += kept_table(documents);
  if (record.contains("trained"))
    out += trained_table(record["trained"], kept.at(std::to_string(record["options"]["context"].get<int64_t>())));
  return out;
}

std::string model_card(const ModelConfig& c, const Json& record) {
  const auto& o = record["options"];
  std::string kinds;
  for (const auto& of : record["packed"]) kinds += cat(kinds.empty() ? "" : ", ", of["kind"].get<std::string>());
  return cat("# A sparse-attention form of ", o["model"].get<std::string>().substr(o["model"].get<std::string>().rfind('/') + 1),
             "\n\nEach layer has a lightning indexer (DeepSeek Sparse Attention, DeepSeek-V3.2, 2.1) that chooses the ",
             c.index_topk, " keys a token attends to: ", c.index_n_heads, " heads of ", c.index_head_dim, ", ",
             c.tied_index() ? "on the attention's own keys" : "on keys of their own",
             ". Made by `fulgur adapt`; `fulgur generate`, `chat` and `bench` run it with `--attention sparse`, or `dense`.\n\n"
             "Indexers learned from ",
             o["sequences"].get<int64_t>(), " sequences of ", o["context"].get<int64_t>(), " tokens at most, of ", kinds,
             "; the model was ", record.contains("trained") ? "then trained on with them.\n\n" : "left as it was.\n\n", "```\n",
             adapt_tables(record),
             "```\n\nadapt.json has every figure by document. The licence is that of the model this was made from.\n");
}

}  // namespace fulgur
