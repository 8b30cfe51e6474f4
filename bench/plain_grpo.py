"""A plain PyTorch GRPO step of the same size, the reference beside `fulgur bench grpo`.

    python bench/plain_grpo.py --config config.json --threads 2 --prompts 16 --group 16 --prompt-tokens 128 --max-tokens 64

Written as a PyTorch user would for speed on a CPU: the model of plain_model.py with dense attention (fused), a batched
key-value cache filled in place, prompts computed once for their group, all answers drawn at once; then the policy
gradient over full-vocabulary log-probabilities of the drawn tokens alone, in batches of `--micro` sequences, fused AdamW.
The last line is {"rollout_seconds", "update_seconds", "difference"}: medians, and the largest difference between the
log-probabilities of the sampler and of the trainer.
B batch  T tokens  S cached tokens  D hidden  H heads  E nope + rope  R kv_lora_rank  P rope  V v_head_dim
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

from plain_model import Model, rope_table, rotate_adjacent


def attend(a, x, rope, cache, begin):
    """Attention of plain_model.py over a cache's first `begin` tokens and these."""
    cos, sin, scale = rope
    end = begin + x.shape[1]
    cos, sin = cos[begin:end], sin[begin:end]
    q = a.q_b_proj(a.q_a_layernorm(a.q_a_proj(x))).unflatten(-1, (a.H, a.nope + a.P))
    q = torch.cat((q[..., :a.nope], rotate_adjacent(q[..., a.nope:], cos, sin)), -1).transpose(1, 2)
    c_BTR, k_rope = a.kv_a_proj_with_mqa(x).split((a.R, a.P), -1)
    kv = a.kv_b_proj(a.kv_a_layernorm(c_BTR)).unflatten(-1, (a.H, a.nope + a.V))
    k_rope = rotate_adjacent(k_rope.unsqueeze(2), cos, sin).expand(-1, -1, a.H, -1)
    k_BHSE, v_BHSV = cache
    k_BHSE[:, :, begin:end] = torch.cat((kv[..., :a.nope], k_rope), -1).transpose(1, 2)
    v_BHSV[:, :, begin:end] = kv[..., a.nope:].transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k_BHSE[:, :, :end], v_BHSV[:, :, :end], is_causal=begin == 0, scale=scale)
    return a.o_proj(out.transpose(1, 2).flatten(2))


def step_logits(model, tokens_BT, caches, rope, begin):
    x = model.embed_tokens(tokens_BT)
    for layer, cache in zip(model.layers, caches):
        x = x + attend(layer.self_attn, layer.input_layernorm(x), rope, cache, begin)
        y = layer.post_attention_layernorm(x)
        x = x + (layer.mlp(y, []) if layer.moe else layer.mlp(y))
    return model.lm_head(model.norm(x[:, -1]))


@torch.inference_mode()
def draw(model, prompts_BT, group, max_tokens):
    c, (B, T) = model.c, prompts_BT.shape
    H, E, V = c["num_attention_heads"], c["qk_nope_head_dim"] + c["qk_rope_head_dim"], c["v_head_dim"]
    S = T + max_tokens
    rope = rope_table(c, S)
    caches = [(torch.empty(B, H, S, E), torch.empty(B, H, S, V)) for _ in model.layers]
    logits = step_logits(model, prompts_BT, caches, rope, 0).repeat_interleave(group, 0)
    caches = [tuple(x.repeat_interleave(group, 0) for x in cache) for cache in caches]
    tokens, log_probs = [], []
    for i in range(max_tokens):
        log_p = logits.log_softmax(-1)
        token = torch.multinomial(log_p.exp(), 1)
        tokens.append(token), log_probs.append(log_p.gather(1, token))
        if i + 1 < max_tokens:
            logits = step_logits(model, token, caches, rope, T + i)
    return torch.cat((prompts_BT.repeat_interleave(group, 0), *tokens), 1), torch.cat(log_probs, 1)


def update(model, optimizer, parameters, tokens_BT, old, advantage, T, micro):
    difference = 0.0
    for i in range(0, tokens_BT.shape[0], micro):
        tokens = tokens_BT[i:i + micro]
        x, _ = model.hidden(tokens[:, :-1], "pretrain", [], [])
        log_p = model.lm_head(x[:, T - 1:]).log_softmax(-1).gather(-1, tokens[:, T:].unsqueeze(-1)).squeeze(-1)
        ratio, A = (log_p - old[i:i + micro]).exp(), advantage[i:i + micro, None]
        loss = -torch.min(ratio * A, ratio.clamp(0.8, 1.2) * A).mean(1).sum() / tokens_BT.shape[0]
        loss.backward()
        difference = max(difference, float((log_p.detach() - old[i:i + micro]).abs().max()))
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return difference


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    for name, value in {"threads": 2, "prompts": 16, "group": 16, "prompt-tokens": 128, "max-tokens": 64, "micro": 16, "steps": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = Model(json.load(open(args.config)))
    model.mtp = None
    parameters = [p for name, p in model.named_parameters() if ".indexer." not in name]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), fused=True)
    rollouts, updates, difference = [], [], 0.0
    for step in range(args.steps + 1):
        prompts = torch.randint(model.c["vocab_size"], (args.prompts, args.prompt_tokens))
        start = time.perf_counter()
        tokens, old = draw(model, prompts, args.group, args.max_tokens)
        drawn = time.perf_counter()
        advantage = torch.tensor([-0.5, 0.5]).repeat(tokens.shape[0] // 2)
        difference = max(difference, update(model, optimizer, parameters, tokens.clone(), old.clone(), advantage, args.prompt_tokens, args.micro))
        if step > 0:
            rollouts.append(drawn - start), updates.append(time.perf_counter() - drawn)
    print(json.dumps({"rollout_seconds": statistics.median(rollouts), "update_seconds": statistics.median(updates), "difference": difference}))


if __name__ == "__main__":
    main()
