// fulgur bench kl: what each estimator of the KL does to a tabular policy, exactly.
#include <cmath>
#include <cstdio>

#include "fulgur/base/random.h"
#include "fulgur/cli/cli.h"
#include "fulgur/rl/estimators.h"

namespace fulgur::cli {
namespace {

constexpr const char* kEstimators[] = {"unbiased", "k1", "k2", "k3"};

double length(const std::vector<double>& x) {
  double sum = 0;
  for (double value : x) sum += value * value;
  return std::sqrt(sum);
}

// Over many tables: the mean gradient's distance from the exact one, and its deviation, both over the exact one's length.
Json bench_kl(int64_t actions, int64_t tables) {
  Json rows = Json::array();
  for (double stale : {0.0, 0.3, 1.0})
    for (double away : {0.1, 1.0, 3.0}) {
      Json row{{"pi_old", stale}, {"pi_ref", away}};
      for (std::string kl : kEstimators) {
        double bias = 0, deviation = 0;
        RandomStream random(1, "bench.kl");
        for (int64_t t = 0; t < tables; ++t) {
          std::vector<double> now, old, reference;
          for (int64_t i = 0; i < actions; ++i) {
            now.push_back(random.normal());
            old.push_back(now.back() + stale * random.normal()), reference.push_back(now.back() + away * random.normal());
          }
          auto exact = exact_kl_gradient(now, reference);
          auto got = estimated_kl_gradient(kl, now, old, reference);
          double size = length(exact);
          for (size_t i = 0; i < exact.size(); ++i) got.mean[i] -= exact[i];
          bias += length(got.mean) / size / double(tables), deviation += got.deviation / size / double(tables);
        }
        row[kl] = {{"bias", bias}, {"deviation", deviation}};
      }
      rows.push_back(row);
    }
  return rows;
}

void print(const Json& rows) {
  std::printf(
      "Gradients of KL(pi_theta || pi_ref) by one draw from pi_old, over the exact gradient's length: bias, deviation.\n");
  std::printf("Logits of pi_old and pi_ref are pi_theta's plus normal noise of this size.\n\n%-7s %-7s", "pi_old", "pi_ref");
  for (const char* kl : kEstimators) std::printf(" %18s", kl);
  std::printf("\n");
  for (const auto& row : rows) {
    std::printf("%-7.1f %-7.1f", row["pi_old"].get<double>(), row["pi_ref"].get<double>());
    for (const char* kl : kEstimators)
      std::printf(" %8.3f %9.2f", row[kl]["bias"].get<double>(), row[kl]["deviation"].get<double>());
    std::printf("\n");
  }
  std::printf("%s\n", Json{{"machine", machine_json()}, {"results", rows}}.dump().c_str());
}

}  // namespace

void add_bench_kl(CLI::App& bench) {
  auto actions = std::make_shared<int64_t>(50);
  auto* command = bench.add_subcommand("kl", "Bias and variance of each KL estimator's gradient, exact, for tabular policies");
  command->add_option("--actions", *actions, "Actions of a policy")->capture_default_str()->check(CLI::Range(2, 10000));
  command->footer("Example:\n  fulgur bench kl --actions 50");
  command->callback([actions] { print(bench_kl(*actions, 200)); });
}

}  // namespace fulgur::cli
