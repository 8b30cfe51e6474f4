"""A plain PyTorch model of the same size, the reference beside `fulgur bench train`.

    python bench/plain_model.py --config config.json --stage pretrain --threads 2 --sequences 8 --context 512 --steps 8
    python bench/plain_model.py --check tests/golden/model/dsa-small --weights tests/golden/model/weights/model.safetensors

Written as a PyTorch user would for speed on a CPU: fused attention where there is one (dense stages), tokens sorted by
expert, fused AdamW. Times whole training steps; the last line is {"seconds", "tokens_per_second", "loss"}. --check
compares logits and loss with a golden set instead: it is the same model.
B batch  T tokens  D hidden  H heads  E nope + rope  R kv_lora_rank  P rope  V v_head_dim  J index heads  K index_topk
"""
import argparse
import json
import math
import statistics
import struct
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


def rope_table(c, T):
    P, scaling = c["qk_rope_head_dim"], c.get("rope_scaling")
    f = c.get("rope_theta", 10000) ** (-torch.arange(0, P, 2, dtype=torch.float32) / P)
    scale = (c["qk_nope_head_dim"] + P) ** -0.5
    if scaling:  # YaRN
        length, base = scaling["original_max_position_embeddings"], c.get("rope_theta", 10000)
        turn = lambda beta: P * math.log(length / (beta * 2 * math.pi)) / (2 * math.log(base))
        low, high = max(math.floor(turn(scaling["beta_fast"])), 0), min(math.ceil(turn(scaling["beta_slow"])), P - 1)
        ramp = ((torch.arange(P // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)).clamp(0, 1)
        f = f / scaling["factor"] * ramp + f * (1 - ramp)
        scale *= (0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1) ** 2
    angle = torch.arange(T, dtype=torch.float32)[:, None] * f
    return angle.cos(), angle.sin(), scale


def rotate_adjacent(x_BTHP, cos, sin):
    a, b = x_BTHP[..., 0::2], x_BTHP[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def rotate_halves(x_BTHP, cos, sin):
    a, b = x_BTHP.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def linear(i, o):
    return nn.Linear(i, o, bias=False)


class Indexer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.J, self.D, self.P = c["index_n_heads"], c["index_head_dim"], c["qk_rope_head_dim"]
        self.wq_b, self.wk = linear(c["q_lora_rank"], self.J * self.D), linear(c["hidden_size"], self.D)
        self.k_norm, self.weights_proj = nn.LayerNorm(self.D, 1e-6), linear(c["hidden_size"], self.J)

    def forward(self, x, latent, cos, sin):
        x, latent, P = x.detach(), latent.detach(), self.P
        q = self.wq_b(latent).unflatten(-1, (self.J, self.D))
        k = self.k_norm(self.wk(x)).unsqueeze(2)
        q = torch.cat((rotate_halves(q[..., :P], cos, sin), q[..., P:]), -1)
        k = torch.cat((rotate_halves(k[..., :P], cos, sin), k[..., P:]), -1).squeeze(2)
        w = self.weights_proj(x) * (self.J * self.D) ** -0.5
        dots_BJTS = torch.matmul(q.transpose(1, 2), k.transpose(1, 2).unsqueeze(1)).relu()
        return (dots_BJTS * w.transpose(1, 2).unsqueeze(-1)).sum(1)


def kl(target, scores, keep):
    log_q = scores.masked_fill(~keep, -torch.inf).log_softmax(-1)
    return (target * (target.clamp_min(1e-10).log() - log_q).masked_fill(~keep, 0)).sum(-1).mean()


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, H, self.nope, self.P = c, c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        self.H, self.R, self.V = H, c["kv_lora_rank"], c["v_head_dim"]
        D, eps = c["hidden_size"], c.get("rms_norm_eps", 1e-6)
        self.q_a_proj, self.q_a_layernorm = linear(D, c["q_lora_rank"]), nn.RMSNorm(c["q_lora_rank"], eps)
        self.q_b_proj = linear(c["q_lora_rank"], H * (self.nope + self.P))
        self.kv_a_proj_with_mqa, self.kv_a_layernorm = linear(D, self.R + self.P), nn.RMSNorm(self.R, eps)
        self.kv_b_proj, self.o_proj = linear(self.R, H * (self.nope + self.V)), linear(H * self.V, D)
        self.indexer = Indexer(c)

    def forward(self, x, rope, stage, losses):
        cos, sin, scale = rope
        B, T, _ = x.shape
        latent = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(latent).unflatten(-1, (self.H, self.nope + self.P))
        q = torch.cat((q[..., :self.nope], rotate_adjacent(q[..., self.nope:], cos, sin)), -1)
        c_BTR, k_rope = self.kv_a_proj_with_mqa(x).split((self.R, self.P), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(c_BTR)).unflatten(-1, (self.H, self.nope + self.V))
        k_rope = rotate_adjacent(k_rope.unsqueeze(2), cos, sin).expand(-1, -1, self.H, -1)
        k = torch.cat((kv[..., :self.nope], k_rope), -1).transpose(1, 2)
        q, v = q.transpose(1, 2), kv[..., self.nope:].transpose(1, 2)
        if stage == "pretrain":
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        else:
            causal = torch.ones(T, T, dtype=torch.bool).tril()
            scores, keep = self.indexer(x, latent, cos, sin), causal
            if stage == "sparse" and T > self.c["index_topk"]:
                top = scores.detach().masked_fill(~causal, -torch.inf).topk(self.c["index_topk"], -1).indices
                keep = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, top, True) & causal
            p = (q @ k.transpose(-1, -2) * scale).masked_fill(~(keep if keep.dim() == 2 else keep.unsqueeze(1)), -torch.inf).softmax(-1)
            losses.append(kl(p.detach().mean(1), scores, keep))
            out = p @ v
        return self.o_proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, D, I):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(D, I), linear(D, I), linear(I, D)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Moe(nn.Module):
    def __init__(self, c):
        super().__init__()
        D, I, self.c, self.E = c["hidden_size"], c["moe_intermediate_size"], c, c["n_routed_experts"]
        self.gate = linear(D, self.E)
        self.gate.register_buffer("e_score_correction_bias", torch.zeros(self.E))
        self.experts = nn.ModuleList(Mlp(D, I) for _ in range(self.E))
        self.shared_experts = Mlp(D, I * c["n_shared_experts"])

    def forward(self, x_BTD, balance):
        x, c, k = x_BTD.flatten(0, 1), self.c, self.c["num_experts_per_tok"]
        scores = self.gate(x).sigmoid()
        choice = scores + self.gate.e_score_correction_bias
        groups = c.get("n_group", 1)
        if groups > 1:
            best = choice.unflatten(1, (groups, -1)).topk(2, -1).values.sum(-1).topk(c["topk_group"], -1).indices
            kept = torch.zeros(x.shape[0], groups, dtype=torch.bool).scatter_(1, best, True)
            choice = choice.masked_fill(~kept.repeat_interleave(self.E // groups, 1), -torch.inf)
        ids = choice.topk(k, -1).indices
        weights = scores.gather(1, ids)
        weights = weights / weights.sum(1, keepdim=True) * c.get("routed_scaling_factor", 1)
        B, T = x_BTD.shape[:2]
        f = F.one_hot(ids, self.E).sum(1).view(B, T, -1).float().sum(1) * self.E / (k * T)
        balance.append((f * (scores / scores.sum(1, keepdim=True)).view(B, T, -1).mean(1)).sum(1).mean())
        order = ids.flatten().argsort(stable=True)
        rows, counts = order // k, ids.flatten().bincount(minlength=self.E).tolist()
        parts = x.index_select(0, rows).split(counts)
        out = torch.cat([expert(part) for expert, part in zip(self.experts, parts)]) * weights.flatten()[order].unsqueeze(1)
        return (self.shared_experts(x) + torch.zeros_like(x).index_add(0, rows, out)).view_as(x_BTD)


class Layer(nn.Module):
    def __init__(self, c, moe):
        super().__init__()
        D, eps = c["hidden_size"], c.get("rms_norm_eps", 1e-6)
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(D, eps), nn.RMSNorm(D, eps)
        self.self_attn, self.moe = Attention(c), moe
        self.mlp = Moe(c) if moe else Mlp(D, c["intermediate_size"])

    def forward(self, x, rope, stage, kls, balance):
        x = x + self.self_attn(self.input_layernorm(x), rope, stage, kls)
        y = self.post_attention_layernorm(x)
        return x + (self.mlp(y, balance) if self.moe else self.mlp(y))


class Mtp(Layer):
    def __init__(self, c):
        super().__init__(c, True)
        D, eps = c["hidden_size"], c.get("rms_norm_eps", 1e-6)
        self.enorm, self.hnorm, self.eh_proj, self.norm = nn.RMSNorm(D, eps), nn.RMSNorm(D, eps), linear(2 * D, D), nn.RMSNorm(D, eps)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        D, V = c["hidden_size"], c["vocab_size"]
        self.c, self.embed_tokens, self.lm_head = c, nn.Embedding(V, D), linear(D, V)
        self.layers = nn.ModuleList(Layer(c, i >= c["first_k_dense_replace"]) for i in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(D, c.get("rms_norm_eps", 1e-6))
        self.mtp = Mtp(c) if c.get("num_nextn_predict_layers") else None

    def hidden(self, tokens, stage, kls, balance):
        rope, x = rope_table(self.c, tokens.shape[1]), self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, rope, stage, kls, balance)
        return self.norm(x), rope

    def loss(self, tokens, stage):
        kls, balance = [], []
        x, rope = self.hidden(tokens, stage, kls, balance)
        total = 0
        if stage != "warmup":
            total = F.cross_entropy(self.lm_head(x[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        if self.mtp:
            m = self.mtp
            embedded = self.embed_tokens(tokens.roll(-1, 1))
            y = m.eh_proj(torch.cat((m.enorm(embedded), m.hnorm(x)), -1))
            y = m.norm(m(y, rope, stage, kls, balance))
            if stage != "warmup":
                total = total + 0.3 * F.cross_entropy(self.lm_head(y[:, :-2]).flatten(0, 1), tokens[:, 2:].flatten())
        if stage != "warmup":
            total = total + 1e-4 * sum(balance)
        return total + sum(kls) if kls else total


def read_safetensors(path):
    raw = open(path, "rb").read()
    size = struct.unpack("<Q", raw[:8])[0]
    types = {"F32": torch.float32, "I32": torch.int32}
    return {name: torch.frombuffer(bytearray(raw[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]]), dtype=types[t["dtype"]]).view(t["shape"])
            for name, t in json.loads(raw[8:8 + size]).items() if name != "__metadata__"}


def check(folder, weights):
    """The golden logits and loss, through the sparse form: the same model as Fulgur's."""
    model = Model(json.load(open(f"{folder}/config.json")))
    names = {name.removeprefix("model."): tensor for name, tensor in read_safetensors(weights).items()}
    model.mtp = None
    missing, _ = model.load_state_dict(names, strict=False)
    assert not missing, missing
    tokens, expected = read_safetensors(f"{folder}/inputs.safetensors")["tokens"].long(), read_safetensors(f"{folder}/expected.safetensors")
    with torch.no_grad():
        logits = model.lm_head(model.hidden(tokens, "sparse", [], [])[0])
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    difference = float((logits - expected["logits"]).abs().max() / expected["logits"].abs().max())
    print(json.dumps({"logits": difference, "loss": float((loss - expected["loss"]).abs() / expected["loss"])}))
    return difference <= 2e-5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config")
    parser.add_argument("--stage", choices=["pretrain", "warmup", "sparse"], default="pretrain")
    for name, value in {"threads": 1, "sequences": 8, "context": 512, "steps": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--check")
    parser.add_argument("--weights")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.check:
        raise SystemExit(not check(args.check, args.weights))
    torch.manual_seed(1)
    model = Model(json.load(open(args.config)))
    indexer = [p for name, p in model.named_parameters() if ".indexer." in name]
    main_parameters = [p for name, p in model.named_parameters() if ".indexer." not in name]
    trained = {"pretrain": main_parameters, "warmup": indexer, "sparse": main_parameters + indexer}[args.stage]
    for p in model.parameters():
        p.requires_grad_(False)
    for p in trained:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(257, (args.sequences, args.context))
    seconds = []
    for step in range(args.steps + 2):
        start = time.perf_counter()
        loss = model.loss(tokens, args.stage)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= 2:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(json.dumps({"seconds": median, "tokens_per_second": tokens.numel() / median, "loss": float(loss)}))


if __name__ == "__main__":
    main()
