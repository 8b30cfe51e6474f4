"""A second witness for shapes the golden sets do not have: Hugging Face's DeepseekV32ForCausalLM beside `fulgur forward`.

    python tests/witness.py build/bin/fulgur            # needs torch, transformers 5.23, safetensors
    python tests/witness.py build/bin/fulgur FOLDER...  # models that `fulgur convert` wrote, instead of these

Five heads, sizes that are no multiple of 8, odd lengths, several sequences, YaRN: random weights under the official
names, read by both. ReLU makes exact ties common with few index heads, and torch.topk leaves their order open: here it
takes the smaller index, as we do. Last line: the largest difference of logits over the largest logit, as JSON.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 32}
SHAPES = {
    "five heads": dict(hidden_size=60, heads=5, q=28, kv=20, nope=12, rope=6, v=10, index=(3, 14, 9), experts=(6, 3, 2, 2), tokens=(1, 61)),
    "odd sizes, YaRN": dict(hidden_size=45, heads=3, q=19, kv=13, nope=7, rope=10, v=11, index=(5, 22, 17), experts=(9, 3, 2, 3), tokens=(3, 97), yarn=YARN),
    "one head, one group": dict(hidden_size=33, heads=1, q=17, kv=9, nope=5, rope=2, v=3, index=(1, 4, 1), experts=(5, 1, 1, 1), tokens=(2, 7)),
    "k above the length": dict(hidden_size=72, heads=7, q=30, kv=34, nope=18, rope=14, v=26, index=(6, 30, 500), experts=(12, 4, 3, 4), tokens=(2, 131)),
}


def stable_topk(self, k, dim=-1, **_):
    values, indices = self.sort(dim=dim, descending=True, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))


def config_of(s):
    experts, groups, kept, chosen = s["experts"]
    heads, length, k = s["index"]
    return {
        "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "vocab_size": 103, "hidden_size": s["hidden_size"],
        "intermediate_size": 77, "moe_intermediate_size": 19, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "num_attention_heads": s["heads"], "num_key_value_heads": s["heads"], "q_lora_rank": s["q"], "kv_lora_rank": s["kv"],
        "qk_nope_head_dim": s["nope"], "qk_rope_head_dim": s["rope"], "v_head_dim": s["v"], "n_routed_experts": experts, "n_group": groups,
        "topk_group": kept, "num_experts_per_tok": chosen, "n_shared_experts": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "index_n_heads": heads, "index_head_dim": length, "index_topk": k,
        "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 1280 if "yarn" in s else 256, "hidden_act": "silu",
        "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False, "num_nextn_predict_layers": 0,
        "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 1, **({"rope_scaling": s["yarn"]} if "yarn" in s else {})}


def weights_of(c):
    D, H, E = c["hidden_size"], c["num_attention_heads"], c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    shapes = {"model.embed_tokens": (c["vocab_size"], D), "lm_head": (c["vocab_size"], D), "model.norm": (D,)}
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes |= {at + "input_layernorm": (D,), at + "post_attention_layernorm": (D,)}
        a = at + "self_attn."
        shapes |= {a + "q_a_proj": (c["q_lora_rank"], D), a + "q_a_layernorm": (c["q_lora_rank"],), a + "q_b_proj": (H * E, c["q_lora_rank"]),
                   a + "kv_a_proj_with_mqa": (c["kv_lora_rank"] + c["qk_rope_head_dim"], D), a + "kv_a_layernorm": (c["kv_lora_rank"],),
                   a + "kv_b_proj": (H * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"]), a + "o_proj": (D, H * c["v_head_dim"]),
                   a + "indexer.wq_b": (c["index_n_heads"] * c["index_head_dim"], c["q_lora_rank"]), a + "indexer.wk": (c["index_head_dim"], D),
                   a + "indexer.k_norm": (c["index_head_dim"],), a + "indexer.weights_proj": (c["index_n_heads"], D)}
        moe = i >= c["first_k_dense_replace"]
        parts = [("mlp.", c["intermediate_size"])] if not moe else [("mlp.shared_experts.", c["moe_intermediate_size"])] + [
            (f"mlp.experts.{e}.", c["moe_intermediate_size"]) for e in range(c["n_routed_experts"])]
        for part, I in parts:
            shapes |= {at + part + "gate_proj": (I, D), at + part + "up_proj": (I, D), at + part + "down_proj": (D, I)}
        if moe:
            shapes[at + "mlp.gate"] = (c["n_routed_experts"], D)
    out = {name + ".weight": torch.randn(shape) * 1.5 * shape[1] ** -0.5 if len(shape) > 1 else 1 + 0.2 * torch.randn(shape)
           for name, shape in shapes.items()}
    for i in range(c["num_hidden_layers"]):
        out[f"model.layers.{i}.self_attn.indexer.k_norm.bias"] = 0.2 * torch.randn(c["index_head_dim"])
        if i >= c["first_k_dense_replace"]:
            out[f"model.layers.{i}.mlp.gate.e_score_correction_bias"] = 0.1 * torch.randn(c["n_routed_experts"])
    return out


# Both read the folder's weights; of the tokens' logits the largest difference over the largest logit.
def difference(fulgur, folder, shape):
    config = AutoConfig.from_pretrained(folder)
    tokens = torch.randint(2, config.vocab_size, shape, dtype=torch.int32)
    more = {"experts_implementation": "eager"} if hasattr(config, "n_routed_experts") else {}
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager", **more).eval()
    with torch.no_grad():
        expected = model(tokens.long(), use_cache=False).logits
    attention = "dense" if config.model_type == "llama" else "sparse"
    with tempfile.TemporaryDirectory() as name:
        inputs, outputs = pathlib.Path(name) / "in.safetensors", pathlib.Path(name) / "out.safetensors"
        save_file({"tokens": tokens}, inputs)
        subprocess.run([fulgur, "forward", "--model", folder, "--attention", attention, "--input", inputs, "--output", outputs], check=True,
                       stdout=subprocess.DEVNULL)
        got = load_file(outputs)["logits"]
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float((got - expected).abs().max() / expected.abs().max())


def of_shape(fulgur, shape):
    with tempfile.TemporaryDirectory() as name:
        folder, config = pathlib.Path(name), config_of(shape)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(weights_of(config), folder / "model.safetensors", {"format": "pt"})
        return difference(fulgur, folder, shape["tokens"])


def main():
    torch.manual_seed(3)
    torch.Tensor.topk = stable_topk
    fulgur, *folders = sys.argv[1:]
    out = {folder: difference(fulgur, pathlib.Path(folder), (2, 93)) for folder in folders} or {
        name: of_shape(fulgur, shape) for name, shape in SHAPES.items()}
    print(json.dumps(out))
    raise SystemExit(not all(value <= 2e-5 for value in out.values()))


if __name__ == "__main__":
    main()
