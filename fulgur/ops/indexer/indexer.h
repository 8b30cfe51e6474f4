// The lightning indexer (paper 2.1, eq. 1; spec C and E): scores, selection. Its training: indexer_kl.h.
//   N query rows  S key rows  J index_n_heads  D index_head_dim  G groups of keys
// I(t,s) = sum_j w[t,j] * relu(q[t,j] . k[s]) in f32, heads in ascending order; w holds J^-0.5 * D^-0.5. A pair's score is
// the same bits in any batch, chunk, tile or number of threads. q and k are f32 or bf16 (the same), w is f32.
// Keys may lie in pages (pages.h), int32 [P] of k as cached_keys.h stores them: plain, fp8 or int8. Or key by key,
// [pages, 64, G, D] with any strides between keys and groups: attention's own keys in its cache. Ranges then count keys of these
// pages and begin with one. Keys [S, G, D] have groups: heads [g J / G, (g + 1) J / G) see group g, as in grouped-query
// attention, whose own keys may serve; a cache's keys are of G D numbers then. By int8 keys each head's query is rounded to whole
// numbers to +-63 too; dots are then exact. Cost 2*J*D FLOP a pair. Throws InputError when shapes disagree or a range leaves the
// keys. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

namespace fulgur::ops {

// [N, S] f32, -inf outside [begin, end). For tests and dumps: selection never holds it.
at::Tensor indexer_scores(const at::Tensor& q_NJD, const at::Tensor& k_SD, const at::Tensor& w_NJ, const at::Tensor& visible_N2,
                          const at::Tensor& pages = {});

// The k best visible keys of each row, int32 [N, k], ascending, -1 padding: larger score first, then smaller index (ReLU
// makes exact ties common); NaN counts as lowest. Rows with at most k keys take all, unscored. Memory O(S) a task.
at::Tensor indexer_top_k(const at::Tensor& q_NJD, const at::Tensor& k_SD, const at::Tensor& w_NJ, const at::Tensor& visible_N2,
                         int64_t k, const at::Tensor& pages = {});

// The same rule on given scores [N, S] and lengths int32 [N].
at::Tensor top_k(const at::Tensor& scores_NS, const at::Tensor& lengths_N, int64_t k);

namespace reference {
at::Tensor dot_products(const at::Tensor& q_NJD, const at::Tensor& k_SD);  // [N, J, S]
at::Tensor indexer_scores(const at::Tensor& q_NJD, const at::Tensor& k_SD, const at::Tensor& w_NJ, const at::Tensor& visible_N2);
at::Tensor top_k(const at::Tensor& scores_NS, const at::Tensor& lengths_N, int64_t k);
}  // namespace reference

}  // namespace fulgur::ops
