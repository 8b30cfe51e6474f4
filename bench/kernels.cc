// The kernels alone, without libtorch: runs on a machine that has none, and under Callgrind, whose instruction counts
// (bench/callgrind.py) notice a slower kernel where no clock can be trusted.
//
//   kernels                          every case on every instruction set of this CPU: GFLOP/s or GB/s, and how far the
//                                    result is from the portable kernel's
//   kernels --case gemm --isa avx2   one case, one instruction set
//   kernels --once                   each case once, small: for Callgrind
//   kernels --list                   the names of the cases
#include "fulgur/ops/adamw/kernels.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"
#include "fulgur/ops/dense_mla/kernels.h"
#include "fulgur/ops/experts/kernels.h"
#include "fulgur/ops/indexer/kernels.h"
#include "fulgur/ops/indexer_kl/kernels.h"
#include "fulgur/ops/isa.h"
#include "fulgur/ops/linear/gathered.h"
#include "fulgur/ops/linear/gemm.h"
#include "fulgur/ops/log_prob/kernels.h"
#include "fulgur/ops/norm/kernels.h"
#include "fulgur/ops/rope/kernels.h"
#include "fulgur/ops/sparse_mla/kernels.h"

// What Callgrind counts: its name is given to --toggle-collect.
extern "C" __attribute__((noinline)) void kernels_run_once(const std::function<void()>& run) { run(); }

namespace fulgur {
namespace {

using Floats = std::vector<float>;
using Clock = std::chrono::steady_clock;

// A piece of work that leaves its result in `out`.
struct Case {
  std::string name;
  double flops = 0, bytes = 0;
  std::function<void()> run;
  std::shared_ptr<Floats> out;
};

std::shared_ptr<Floats> numbers(int64_t count, float scale = 1) {
  std::mt19937 generator{uint32_t(count)};
  std::normal_distribution<float> normal(0, scale);
  auto out = std::make_shared<Floats>(count);
  for (float& x : *out) x = normal(generator);
  return out;
}

std::shared_ptr<std::vector<uint16_t>> halves(int64_t count) {
  auto from = numbers(count);
  auto out = std::make_shared<std::vector<uint16_t>>(count);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &(*from)[i], 4);
    (*out)[i] = uint16_t(bits >> 16);
  }
  return out;
}

// Rows times a weight, or, turned, a weight's gradient: both operands contiguous across k.
Case gemm_case(const std::string& name, int64_t M, int64_t N, int64_t K, Storage type, bool turned = false) {
  auto c = std::make_shared<Floats>(M * N);
  GemmParams p{.a = nullptr,
               .b = nullptr,
               .c = c->data(),
               .M = M,
               .N = N,
               .K = K,
               .a_row = turned ? 1 : K,
               .a_col = turned ? M : 1,
               .b_row = turned ? N : 1,
               .b_col = turned ? 1 : K,
               .c_row = N,
               .a_type = type,
               .b_type = type};
  std::shared_ptr<void> a, b;
  if (type == Storage::f32) {
    auto x = numbers(M * K), y = numbers(N * K);
    p.a = x->data(), p.b = y->data(), a = x, b = y;
  } else {
    auto x = halves(M * K), y = halves(N * K);
    p.a = x->data(), p.b = y->data(), a = x, b = y;
  }
  return {name, 2.0 * double(M * N * K), 0, [=] { (void)a, (void)b, gemm(p); }, c};
}

// Keys [0, end) for each of the last N of S rows.
std::shared_ptr<std::vector<int32_t>> slab(int64_t N, int64_t S) {
  auto out = std::make_shared<std::vector<int32_t>>();
  for (int64_t i = 0; i < N; ++i) out->push_back(0), out->push_back(int32_t(S - N + 1 + i));
  return out;
}

void add_dense(std::vector<Case>& out, int64_t N, int64_t S, int64_t H) {
  constexpr int64_t E = 192, V = 128;
  auto q = numbers(N * H * E, .3f), k = numbers(S * H * E, .3f), v = numbers(S * H * V), dout = numbers(N * H * V);
  auto y = std::make_shared<Floats>(N * H * V), lse = std::make_shared<Floats>(N * H);
  auto grads = std::make_shared<Floats>((N + S) * H * E + S * H * V);
  auto visible = slab(N, S);
  DenseMlaParams p{.q = q->data(),
                   .k = k->data(),
                   .v = v->data(),
                   .visible = visible->data(),
                   .out = y->data(),
                   .lse = lse->data(),
                   .H = H,
                   .G = H,
                   .E = E,
                   .V = V,
                   .scale = .07f,
                   .type = Storage::f32,
                   .dout = dout->data(),
                   .dq = grads->data(),
                   .dk = grads->data() + N * H * E,
                   .dv = grads->data() + (N + S) * H * E};
  double pairs = double(H) * double(N) * (double(S) - double(N - 1) / 2);
  out.push_back({"dense_mla", 2 * pairs * (E + V), 0,
                 [=] {
                   (void)q, (void)k, (void)v, (void)visible;
                   int64_t count = (N + kDenseMlaRows - 1) / kDenseMlaRows;
                   parallel_for(count * H, [&](int64_t i) {
                     int64_t first = i / H * kDenseMlaRows;
                     FULGUR_CALL(dense_mla_block)(p, i % H, first, std::min(N, first + kDenseMlaRows));
                   });
                 },
                 y});
  out.push_back({"dense_mla backward", 2 * pairs * (3 * E + 2 * V), 0,
                 [=] {
                   (void)dout, (void)lse, (void)y;
                   std::fill(grads->begin(), grads->end(), 0.0f);
                   parallel_for(H, [&](int64_t h) {
                     for (int64_t first = 0; first < N; first += kDenseMlaRows)
                       FULGUR_CALL(dense_mla_backward_block)(p, h, first, std::min(N, first + kDenseMlaRows));
                   });
                 },
                 grads});
}

// K keys for each row, spread over S.
std::shared_ptr<std::vector<int32_t>> spread(int64_t N, int64_t S, int64_t K) {
  auto out = std::make_shared<std::vector<int32_t>>();
  for (int64_t n = 0; n < N; ++n)
    for (int64_t i = 0; i < K; ++i) out->push_back(int32_t(i * S / K + n * 7 % (S / K)));
  return out;
}

void add_sparse(std::vector<Case>& out, const std::string& suffix, int64_t N, int64_t S, int64_t H, int64_t K, int64_t C,
                int64_t R) {
  auto q = numbers(N * H * C, .2f), kv = numbers(S * C, .2f), dout = numbers(N * H * R);
  auto y = std::make_shared<Floats>(N * H * R), lse = std::make_shared<Floats>(N * H), target = std::make_shared<Floats>(N * K);
  auto dq = std::make_shared<Floats>(N * H * C), dkv = std::make_shared<Floats>(S * C);
  auto selected = spread(N, S, K);
  SparseMlaParams p{.q = q->data(),
                    .kv = kv->data(),
                    .selected = selected->data(),
                    .rows = selected->data(),
                    .out = y->data(),
                    .lse = lse->data(),
                    .target = target->data(),
                    .H = H,
                    .C = C,
                    .R = R,
                    .K = K,
                    .scale = .07f,
                    .type = Storage::f32,
                    .fp8 = false,
                    .dout = dout->data(),
                    .dq = dq->data()};
  KeyGradients keys{
      .selected = selected->data(), .N = N, .K = K, .terms = 2 * H, .length = C, .split = R, .to = dkv->data(), .room = nullptr};
  auto room = std::make_shared<Floats>(keys.slots() * keys.slot_size());
  keys.room = room->data();
  double pairs = double(N * H * K);
  out.push_back({"sparse_mla" + suffix, 2 * pairs * (C + R), 0,
                 [=] {
                   (void)q, (void)kv, (void)selected, (void)target;
                   parallel_for(N, [&](int64_t row) { FULGUR_CALL(sparse_mla_row)(p, row); });
                 },
                 y});
  out.push_back({"sparse_mla backward" + suffix, 2 * pairs * (3 * C + 2 * R), 0,
                 [=] {
                   (void)dout, (void)dq, (void)y, (void)lse, (void)room;
                   std::fill(dkv->begin(), dkv->end(), 0.0f);
                   add_to_keys(keys, [&](int64_t row, int64_t slot) {
                     FULGUR_CALL(sparse_mla_backward_row)(p, row, keys.coefficients(slot), keys.stride(), keys.lines(slot));
                   });
                 },
                 dkv});
}

void add_indexer(std::vector<Case>& out, int64_t N, int64_t S, int64_t J, int64_t K) {
  constexpr int64_t D = 128;
  auto q = numbers(N * J * D), k = numbers(S * D), w = numbers(N * J, .1f);
  auto visible = slab(N, S);
  IndexerParams p{q->data(), k->data(), w->data(), visible->data(), J, D, Storage::f32};
  auto scores = std::make_shared<Floats>(N * S);
  double pairs = double(N) * (double(S) - double(N - 1) / 2);
  out.push_back({"indexer_scores", 2.0 * double(N * S * J * D), 0,
                 [=] {
                   (void)q, (void)k, (void)w, (void)visible;
                   parallel_for((N + kIndexerRows - 1) / kIndexerRows, [&](int64_t i) {
                     int64_t first = i * kIndexerRows, last = std::min(N, first + kIndexerRows);
                     FULGUR_CALL(indexer_score_block)(p, first, last, 0, S, scores->data() + first * S, S);
                   });
                 },
                 scores});
  auto selected = std::make_shared<Floats>(N * K);
  out.push_back({"indexer_top_k", 2 * pairs * double(J * D), 0,
                 [=] {
                   parallel_for((N + kIndexerRows - 1) / kIndexerRows, [&](int64_t i) {
                     int64_t first = i * kIndexerRows;
                     FULGUR_CALL(indexer_select_block)
                     (p, first, std::min(N, first + kIndexerRows), K, reinterpret_cast<int32_t*>(selected->data()));
                   });
                 },
                 nullptr});
  out.push_back({"top_k", 0, 4.0 * double(N * S),
                 [=] {
                   parallel_for(N, [&](int64_t row) {
                     FULGUR_CALL(top_k_row)
                     (scores->data() + row * S, S, K, 0, reinterpret_cast<int32_t*>(selected->data()) + row * K);
                   });
                 },
                 nullptr});
}

void add_sparse_kl(std::vector<Case>& out, int64_t N, int64_t S, int64_t J, int64_t D, int64_t K) {
  auto q = numbers(N * J * D), k = numbers(S * D), w = numbers(N * J, .1f), target = numbers(N * K, .01f), ones = numbers(N);
  auto selected = spread(N, S, K);
  auto grads = std::make_shared<Floats>(N + N * J * D + S * D + N * J);
  IndexerKlParams p{};
  p.indexer = {q->data(), k->data(), w->data(), nullptr, J, D, Storage::f32};
  p.selected = selected->data(), p.target = target->data(), p.K = K;
  p.kl = grads->data(), p.dkl = ones->data(), p.dq = p.kl + N, p.dk = p.dq + N * J * D, p.dw = p.dk + S * D;
  KeyGradients keys{
      .selected = selected->data(), .N = N, .K = K, .terms = J, .length = D, .split = 0, .to = p.dk, .room = nullptr};
  auto room = std::make_shared<Floats>(keys.slots() * keys.slot_size());
  keys.room = room->data();
  out.push_back({"indexer_kl_sparse train", 6.0 * double(N * K * J * D), 0,
                 [=] {
                   (void)q, (void)k, (void)w, (void)target, (void)ones, (void)selected, (void)room;
                   std::fill(grads->begin(), grads->end(), 0.0f);
                   add_to_keys(keys, [&](int64_t row, int64_t slot) {
                     FULGUR_CALL(indexer_kl_sparse_row)(p, row, keys.coefficients(slot), keys.stride(), keys.lines(slot));
                   });
                 },
                 grads});
}

void add_kl(std::vector<Case>& out, int64_t N, int64_t S, int64_t J, int64_t H) {
  constexpr int64_t D = 128, E = 192;
  auto q = numbers(N * J * D), k = numbers(S * D), w = numbers(N * J, .1f), aq = numbers(N * H * E, .3f),
       ak = numbers(S * H * E, .3f);
  auto alse = std::make_shared<Floats>(N * H, 6.0f), ones = std::make_shared<Floats>(N, 1.0f);
  auto visible = slab(N, S);
  auto lse = std::make_shared<std::vector<double>>(N), sums = std::make_shared<std::vector<double>>(N * 3 * kKlStripes);
  auto grads = std::make_shared<Floats>(N * J * D * kKlStripes + S * D), dw = std::make_shared<Floats>(N * J * kKlStripes);
  IndexerKlParams p{};
  p.indexer = {q->data(), k->data(), w->data(), visible->data(), J, D, Storage::f32};
  p.aq = aq->data(), p.ak = ak->data(), p.attention_lse = alse->data(), p.H = H, p.E = E, p.scale = .07f;
  p.lse = lse->data(), p.dkl = ones->data(), p.dk = grads->data() + N * J * D * kKlStripes;
  out.push_back({"indexer_kl_dense train", 2.0 * double(N) * (double(S) - double(N - 1) / 2) * double(H * E + 3 * J * D), 0,
                 [=] {
                   (void)q, (void)k, (void)w, (void)aq, (void)ak, (void)alse, (void)ones, (void)visible;
                   std::fill(grads->begin(), grads->end(), 0.0f);
                   parallel_for((N + kIndexerRows - 1) / kIndexerRows, [&](int64_t i) {
                     FULGUR_CALL(indexer_lse_block)(p, i * kIndexerRows, std::min(N, (i + 1) * kIndexerRows));
                   });
                   parallel_for(kKlStripes, [&](int64_t i) {
                     KlStripe stripe{sums->data() + i * N * 3, grads->data() + i * N * J * D, dw->data() + i * N * J};
                     FULGUR_CALL(indexer_kl_stripe)(p, 0, N, i, stripe);
                   });
                 },
                 grads});
}

void add_rows(std::vector<Case>& out, int64_t N, int64_t D) {
  auto x = numbers(N * D), y = std::make_shared<Floats>(N * D), w = numbers(D), rstd = std::make_shared<Floats>(N);
  auto up = numbers(N * D), m = numbers(N * D), v = std::make_shared<Floats>(N * D, .5f);
  NormParams norm{.x = x->data(),
                  .residual = nullptr,
                  .weight = w->data(),
                  .bias = nullptr,
                  .y = y->data(),
                  .sum = nullptr,
                  .mean = nullptr,
                  .rstd = rstd->data(),
                  .D = D,
                  .eps = 1e-6f,
                  .type = Storage::f32};
  out.push_back({"rms_norm", 0, 8.0 * double(N * D),
                 [=] {
                   (void)w, (void)rstd;
                   parallel_for(N, [&](int64_t row) { FULGUR_CALL(norm_row)(norm, row); });
                 },
                 y});
  SwigluParams swiglu{x->data(), up->data(), nullptr, y->data(), nullptr, nullptr, Storage::f32};
  out.push_back({"swiglu", 0, 12.0 * double(N * D),
                 [=] {
                   (void)x, (void)up;
                   parallel_for(N, [&](int64_t row) { FULGUR_CALL(swiglu_block)(swiglu, row * D, row * D + D); });
                 },
                 y});
  AdamwParams adamw{y->data(), x->data(), m->data(), v->data(), .9f, .95f, 1e-8f, 1, 1e-4f, 1.1f, .999f};
  out.push_back({"adamw", 0, 28.0 * double(N * D),
                 [=] {
                   (void)m, (void)v;
                   parallel_for(N, [&](int64_t row) { FULGUR_CALL(adamw_block)(adamw, row * D, row * D + D); });
                 },
                 nullptr});
  out.push_back({"log_sum_exp", 0, 4.0 * double(N * D),
                 [=] { parallel_for(N, [&](int64_t row) { (*rstd)[row] = FULGUR_CALL(log_sum_exp)(x->data() + row * D, D); }); },
                 rstd});
}

std::vector<Case> all_cases(bool small) {
  std::vector<Case> out;
  int64_t n = small ? 192 : 1024;
  for (Storage type : {Storage::f32, Storage::bf16}) {
    std::string name = type == Storage::f32 ? "f32" : "bf16";
    out.push_back(gemm_case("gemm " + name, n, n, small ? 512 : n, type));
    out.push_back(gemm_case("gemm " + name + " turned", small ? 96 : 384, 128, small ? 512 : 4096, type, true));
    for (int64_t rows : {1, 8, 64})
      out.push_back(gemm_case("gemm " + name + " rows " + std::to_string(rows), rows, small ? 256 : 4096, 1024, type));
  }
  if (small) {
    add_dense(out, 64, 256, 2), add_sparse(out, "", 2, 512, 16, 256, 576, 512),
        add_sparse(out, " 4 heads", 16, 512, 4, 64, 80, 64), add_indexer(out, 16, 2048, 8, 128);
    add_kl(out, 32, 512, 4, 2), add_sparse_kl(out, 16, 512, 4, 32, 64), add_rows(out, 16, 2048);
  } else {
    add_dense(out, 512, 4096, 2), add_sparse(out, "", 8, 32768, 128, 2048, 576, 512),
        add_sparse(out, " 4 heads", 512, 512, 4, 64, 80, 64), add_indexer(out, 64, 32768, 64, 2048);
    add_kl(out, 128, 4096, 64, 16), add_sparse_kl(out, 512, 512, 4, 32, 64), add_rows(out, 2048, 8192);
  }
  return out;
}

// Best of several: the machine is shared, and what is asked is what the code can do.
double seconds_of(const std::function<void()>& run, double budget) {
  double best = INFINITY;
  auto end = Clock::now() + std::chrono::duration<double>(budget);
  for (int round = 0; round < 3 || Clock::now() < end; ++round) {
    auto start = Clock::now();
    run();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

double difference(const Floats& a, const Floats& b) {
  double most = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::fabs(double(a[i]) - double(b[i]))), size = std::max(size, std::fabs(double(b[i])));
  return most / size;
}

struct Options {
  std::string name, isa;
  bool once = false, list = false;
  double seconds = .3;
};

Options parse(int count, char** arguments) {
  Options o;
  for (int i = 1; i < count; ++i) {
    std::string key = arguments[i];
    auto value = [&] {
      FULGUR_CHECK(i + 1 < count, "[kernels] expected a value behind ", key);
      return std::string(arguments[++i]);
    };
    if (key == "--case") o.name = value();
    else if (key == "--isa") o.isa = value();
    else if (key == "--seconds") o.seconds = std::stod(value());
    else if (key == "--threads") set_threads(std::stoi(value()));
    else if (key == "--once") o.once = true;
    else if (key == "--list") o.list = true;
    else throw InputError(cat("[kernels] expected --case, --isa, --seconds, --threads, --once or --list, got ", key));
  }
  return o;
}

void run_all(const Options& o) {
  if (o.list) {
    for (const auto& c : all_cases(true)) std::printf("%s\n", c.name.c_str());
    return;
  }
  std::map<std::string, Floats> portable;
  for (std::string name : {"portable", "avx2", "avx512", "avx512bf16"}) {
    if (!o.isa.empty() && name != o.isa) continue;
    try {
      set_isa(name);
    } catch (const InputError&) {
      continue;
    }
    for (const auto& c : all_cases(o.once)) {
      if (c.name.find(o.name) == std::string::npos) continue;
      if (o.once) {
        if (c.name == o.name || o.name.empty()) kernels_run_once(c.run);
        continue;
      }
      double seconds = seconds_of(c.run, o.seconds);
      std::printf("%-9s %-22s %9.3f ms %8.1f %s", name.c_str(), c.name.c_str(), seconds * 1e3,
                  (c.flops > 0 ? c.flops : c.bytes) / seconds / 1e9, c.flops > 0 ? "GFLOP/s" : "GB/s   ");
      if (c.out && name == "portable") portable[c.name] = *c.out;
      else if (c.out && portable.count(c.name)) std::printf("  differs by %.1e", difference(*c.out, portable[c.name]));
      std::printf("\n");
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace fulgur

int main(int count, char** arguments) {
  try {
    fulgur::run_all(fulgur::parse(count, arguments));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
