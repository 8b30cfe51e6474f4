"""torch.library.opcheck over every operation of fulgur: python tests/opcheck.py build/libfulgur_ops.so

Schema, autograd registration, Meta kernels and AOT dispatch, as PyTorch users meet them in torch.ops.fulgur.
"""
import sys

import torch

torch.ops.load_library(sys.argv[1])
F = torch.ops.fulgur
torch.manual_seed(1)


def leaf(*shape):
    return torch.randn(*shape).requires_grad_()


N, D, H, S, J, K = 6, 16, 3, 9, 2, 4
visible = torch.tensor([[0, i + 3] for i in range(N)], dtype=torch.int32)
ids = torch.tensor([[0, 2], [1, 3], [0, 1], [2, 3], [1, 2], [0, 3]], dtype=torch.int32)
selected = torch.tensor([[0, 1, 2, -1]] + [[0, 1, 2, 3]] * (N - 1), dtype=torch.int32)
targets = torch.tensor([1, 2, -1, 4, 0, 3], dtype=torch.int32)
starts = torch.tensor([0, 2, N], dtype=torch.int32)
even = torch.full((N, K), 0.25)

PACKED = (0, 2, 3)  # not 1, fp8: opcheck multiplies what it is given, and torch cannot multiply float8

CASES = {
    "pack": [(torch.randn(2, 32, 8),), (torch.randn(32, 8).bfloat16(),), *((torch.randn(16, 64), i) for i in (2, 3))],
    "unpack": [(F.pack(torch.randn(16, 64), i),) for i in PACKED],
    "linear": [(leaf(N, D), leaf(5, D)), *((torch.randn(N, 2 * D), F.pack(torch.randn(32, 2 * D), i)) for i in PACKED)],
    "head_linear": [(leaf(N, H, D), leaf(H, D, 5)), (torch.randn(N, H, D), F.pack(torch.randn(H, 16, D)))],
    "norm": [(leaf(N, D), None, leaf(D), None, 1e-6), (leaf(N, D), leaf(N, D), leaf(D), None, 1e-6),
             (leaf(N, D), None, leaf(D), leaf(D), 1e-6)],
    "rope": [(leaf(N, H, D), torch.rand(N, 4), torch.rand(N, 4), 2, halves, False) for halves in (True, False)],
    "swiglu": [(leaf(N, D), leaf(N, D))],
    "experts": [(leaf(N, D), ids, leaf(N, 2), leaf(4, 8, D), leaf(4, 8, D), leaf(4, D, 8), leaf(N, D))],
    "route": [(torch.randn(N, 8), torch.zeros(8), 4, 2, 2)],
    "route_weights": [(leaf(N, 4), ids, True, 2.5)],
    "balance_loss": [(leaf(N, 4), ids, starts)],
    "log_prob": [(leaf(N, D), leaf(7, D), targets)],
    "kept_log_prob": [(leaf(N, D), leaf(7, D), targets, torch.tensor([0, 0, 2, 2, 4, 5, 5], dtype=torch.int32),
                       torch.tensor([2, 5, 1, 4, 0], dtype=torch.int32), 0.8)],
    "logits": [(torch.randn(N, D), torch.randn(7, D)), (torch.randn(N, D), F.pack(torch.randn(16, D)))],
    "embedding": [(leaf(7, D), targets, False)],
    "dense_mla": [(leaf(N, H, D), leaf(S, H, D), leaf(S, H, 5), visible, 0.3)],
    "sparse_mla": [(leaf(N, H, D), leaf(S, D), selected, 12, 0.3)],
    "indexer_scores": [(torch.randn(N, J, D), torch.randn(S, D), torch.randn(N, J), visible)],
    "indexer_top_k": [(torch.randn(N, J, D), torch.randn(S, D), torch.randn(N, J), visible, K)],
    "top_k": [(torch.randn(N, S), visible[:, 1].contiguous(), K)],
    "indexer_kl_dense": [(leaf(N, J, D), leaf(S, D), leaf(N, J), torch.randn(N, H, D), torch.randn(S, H, D),
                          torch.full((N, H), 3.0), visible, 0.3)],
    "indexer_kl_sparse": [(leaf(N, J, D), leaf(S, D), leaf(N, J), selected, even)],
    "hadamard": [(leaf(N, D),)],
    "simulate_fp8": [(leaf(N, D),)],
}

names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fulgur::")}
forward = {name for name in names if not name.endswith("_backward")}
missing = forward - CASES.keys()
if missing:
    sys.exit(f"[opcheck] expected a case for every operation, got none for {sorted(missing)}")
failed = 0
for name, cases in sorted(CASES.items()):
    for case in cases:
        # Straight-through rounding has no numerical gradient, and opcheck takes none: it compares dispatch, not values.
        results = torch.library.opcheck(getattr(F, name).default, case, raise_exception=False)
        bad = {test: str(result)[:300] for test, result in results.items() if result != "SUCCESS"}
        failed += bool(bad)
        print(f"{name:20s} {'ok' if not bad else bad}")
print(f"{len(CASES)} operations, {failed} failures")
sys.exit(failed > 0)
