#include "fulgur/rl/policy_rows.h"

#include <ATen/ops/tensor.h>

#include <algorithm>

namespace fulgur {
namespace {

// Where the rows of a segment lie: the first `shared` at the batch's beginning, the others behind each other.
struct Piece {
  const Segment* segment;
  int64_t shared, first;
  int64_t length() const { return int64_t(segment->tokens.size()) - 1; }
  int64_t row(int64_t position) const { return position < shared ? position : first + position - shared; }
};

bool same_choices(const Choices& a, const Choices& b, int64_t positions) {
  if (a.layers != b.layers || a.k != b.k || std::min(a.positions, b.positions) < positions) return false;
  for (int64_t layer = 0; layer < a.layers; ++layer) {
    auto from = a.ids.begin() + layer * a.positions * a.k;
    if (!std::equal(from, from + positions * a.k, b.ids.begin() + layer * b.positions * b.k)) return false;
  }
  return true;
}

// Tokens that all members begin with and that none of them drew, of equal choices; else 0.
int64_t shared_tokens(const std::vector<const Member*>& members) {
  const Segment& first = members[0]->segments[0];
  if (first.drawn.empty()) return 0;
  int64_t shared = first.drawn[0];
  for (const Member* member : members) {
    const Segment& other = member->segments[0];
    bool same = !other.drawn.empty() && other.drawn[0] == shared &&
                std::equal(first.tokens.begin(), first.tokens.begin() + shared, other.tokens.begin()) &&
                same_choices(first.record.experts, other.record.experts, shared) &&
                same_choices(first.record.selected, other.record.selected, shared);
    if (!same) return 0;
  }
  return shared;
}

std::vector<Piece> pieces_of(const std::vector<const Member*>& members, int64_t shared) {
  std::vector<Piece> out;
  int64_t row = shared;
  for (const Member* member : members)
    for (size_t i = 0; i < member->segments.size(); ++i) {
      out.push_back({&member->segments[i], i == 0 ? shared : 0, row});
      row += out.back().length() - out.back().shared;
    }
  return out;
}

// Calls visit(piece, position) for each row in order.
template <class Visit>
void for_each_row(const std::vector<Piece>& pieces, const Visit& visit) {
  for (int64_t i = 0; i < pieces[0].shared; ++i) visit(pieces[0], i);
  for (const auto& piece : pieces)
    for (int64_t i = piece.shared; i < piece.length(); ++i) visit(piece, i);
}

// A layer's choices for all rows; `of` gives a record's. Keys are numbered by rows.
template <class Of>
at::Tensor layer_choices(const std::vector<Piece>& pieces, const Of& of, int64_t layer, bool keys) {
  std::vector<int32_t> ids;
  int64_t k = of(pieces[0].segment->record).k, rows = 0;
  for_each_row(pieces, [&](const Piece& piece, int64_t position) {
    const Choices& choices = of(piece.segment->record);
    const int32_t* chosen = choices.ids.data() + (layer * choices.positions + position) * k;
    for (int64_t i = 0; i < k; ++i) ids.push_back(keys && chosen[i] >= 0 ? int32_t(piece.row(chosen[i])) : chosen[i]);
    ++rows;
  });
  return at::tensor(ids, at::kInt).view({rows, k});
}

Batch batch_of(const std::vector<Piece>& pieces) {
  std::vector<int32_t> tokens, positions, visible;
  for_each_row(pieces, [&](const Piece& piece, int64_t position) {
    auto row = int32_t(tokens.size());
    tokens.push_back(piece.segment->tokens[position]), positions.push_back(int32_t(position));
    visible.push_back(position < piece.shared ? 0 : int32_t(piece.first)), visible.push_back(row + 1);
  });
  return {at::tensor(tokens, at::kInt), at::tensor(positions, at::kInt), at::tensor(visible, at::kInt).view({-1, 2})};
}

}  // namespace

PolicyRows policy_rows(const ModelConfig& config, const std::vector<const Member*>& members, bool kept_sets, RowLayout layout) {
  PolicyRows out;
  int64_t shared = layout == RowLayout::shared ? shared_tokens(members) : 0;
  auto pieces = pieces_of(members, shared);
  std::vector<int32_t> targets, offsets{0}, kept;
  std::vector<int64_t> rows;
  for (const auto& piece : pieces) {
    const Segment& s = *piece.segment;
    for (size_t i = 0; i < s.drawn.size(); ++i) {
      rows.push_back(piece.row(s.drawn[i] - 1)), targets.push_back(s.tokens[s.drawn[i]]);
      if (kept_sets) kept.insert(kept.end(), s.kept.begin() + s.kept_offsets[i], s.kept.begin() + s.kept_offsets[i + 1]);
      offsets.push_back(int32_t(kept.size()));
    }
    out.old.insert(out.old.end(), s.log_prob.begin(), s.log_prob.end());
    out.proximal.insert(out.proximal.end(), s.proximal.begin(), s.proximal.end());
  }
  for (const Member* member : members) out.counts.push_back(member->sampled());
  std::vector<float> copies;
  for_each_row(pieces, [&](const Piece& piece, int64_t position) {
    copies.push_back(position < piece.shared ? float(members.size()) : 1.0f);
  });
  out.batch = batch_of(pieces), out.copies_N = at::tensor(copies);
  out.rows = at::tensor(rows, at::kLong), out.targets = at::tensor(targets, at::kInt);
  out.kept = {at::tensor(offsets, at::kInt), at::tensor(kept, at::kInt)};
  auto experts = [](const Record& record) -> const Choices& { return record.experts; };
  auto selected = [](const Record& record) -> const Choices& { return record.selected; };
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    out.replay.experts_Nk.push_back(
        config.is_moe(i) ? layer_choices(pieces, experts, i - config.first_k_dense_replace, /*keys=*/false) : at::Tensor());
    out.replay.selected_NK.push_back(layer_choices(pieces, selected, i, /*keys=*/true));
  }
  return out;
}

}  // namespace fulgur
