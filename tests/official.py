"""A random checkpoint in DeepSeek's published FP8 layout, and what became of it; written apart from the program under test.

    python tests/official.py write FOLDER              # 163 shards, an MTP layer, blocks that end within a matrix
    python tests/official.py compare FOLDER CONVERTED
    python tests/official.py large FOLDER              # no FP8, but 1.6 GB in bf16, most of it experts

    python tests/official.py gguf FOLDER FILE          # the same tensors as llama.cpp names them; needs the gguf package too
    python tests/official.py tiny FOLDER               # 100 KB, f16

Needs torch and safetensors.

compare: `fulgur convert` of FOLDER to f32, bf16 or fp8. Last line: {"tensors": N, "different": [names]}.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

BLOCK, SHARDS = 128, 163
CONFIG = {
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "vocab_size": 2560, "hidden_size": 320,
    "intermediate_size": 400, "moe_intermediate_size": 160, "num_hidden_layers": 4, "first_k_dense_replace": 1, "num_attention_heads": 4,
    "num_key_value_heads": 4, "q_lora_rank": 192, "kv_lora_rank": 512, "qk_nope_head_dim": 48, "qk_rope_head_dim": 64, "v_head_dim": 32,
    "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "index_n_heads": 4, "index_head_dim": 128,
    "index_topk": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 4096, "hidden_act": "silu",
    "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False, "num_nextn_predict_layers": 1, "bos_token_id": 0,
    "eos_token_id": 1, "torch_dtype": "bfloat16",
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}}


def shapes():
    c, out = CONFIG, {}
    D, H, V = c["hidden_size"], c["num_attention_heads"], c["vocab_size"]
    E = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]

    def mlp(at, inner):
        out.update({at + "gate_proj": (inner, D), at + "up_proj": (inner, D), at + "down_proj": (D, inner)})

    for i in range(c["num_hidden_layers"] + c["num_nextn_predict_layers"]):
        at = f"model.layers.{i}."
        a = at + "self_attn."
        out.update({at + "input_layernorm": (D,), at + "post_attention_layernorm": (D,), a + "q_a_proj": (c["q_lora_rank"], D),
                    a + "q_a_layernorm": (c["q_lora_rank"],), a + "q_b_proj": (H * E, c["q_lora_rank"]),
                    a + "kv_a_proj_with_mqa": (c["kv_lora_rank"] + c["qk_rope_head_dim"], D), a + "kv_a_layernorm": (c["kv_lora_rank"],),
                    a + "kv_b_proj": (H * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"]), a + "o_proj": (D, H * c["v_head_dim"]),
                    a + "indexer.wq_b": (c["index_n_heads"] * c["index_head_dim"], c["q_lora_rank"]), a + "indexer.wk": (c["index_head_dim"], D),
                    a + "indexer.k_norm": (c["index_head_dim"],), a + "indexer.weights_proj": (c["index_n_heads"], D)})
        if i < c["first_k_dense_replace"]:
            mlp(at + "mlp.", c["intermediate_size"])
            continue
        out[at + "mlp.gate"] = (c["n_routed_experts"], D)
        for e in range(c["n_routed_experts"]):
            mlp(f"{at}mlp.experts.{e}.", c["moe_intermediate_size"])
        mlp(at + "mlp.shared_experts.", c["moe_intermediate_size"])
    out.update({"model.embed_tokens": (V, D), "model.norm": (D,), "lm_head": (V, D)})
    if c["num_nextn_predict_layers"]:
        at = f"model.layers.{c['num_hidden_layers']}."
        out.update({at + "embed_tokens": (V, D), at + "enorm": (D,), at + "hnorm": (D,), at + "eh_proj": (D, 2 * D), at + "shared_head.norm": (D,),
                    at + "shared_head.head": (V, D)})
    return {name + ".weight": shape for name, shape in out.items()}


def in_fp8(name, shape):
    return len(shape) == 2 and not any(part in name for part in ("embed_tokens", "head", "mlp.gate.weight", "weights_proj", "eh_proj"))


def blocks(matrix):  # of 128 x 128, the last ones filled up with zeros
    rows, columns = (-(-size // BLOCK) for size in matrix.shape)
    padded = torch.zeros(rows * BLOCK, columns * BLOCK)
    padded[:matrix.shape[0], :matrix.shape[1]] = matrix
    return padded.view(rows, BLOCK, columns, BLOCK)


def quantise(matrix):
    whole = blocks(matrix)
    scale = torch.exp2(torch.ceil(torch.log2(whole.abs().amax((1, 3)).clamp(min=1e-4) / 448)))
    values = (whole / scale[:, None, :, None]).view(whole.shape[0] * BLOCK, -1)[:matrix.shape[0], :matrix.shape[1]]
    return values.contiguous().to(torch.float8_e4m3fn), scale


def dequantise(values, scale):
    assert scale.shape == tuple(-(-size // BLOCK) for size in values.shape), (values.shape, scale.shape)
    return values.float() * scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:values.shape[0], :values.shape[1]]


def random_tensors(fp8):
    torch.manual_seed(5)
    tensors = {}
    for name, shape in shapes().items():
        value = 1 + .2 * torch.randn(shape) if len(shape) == 1 else torch.randn(shape) * 1.5 * shape[1] ** -.5
        if fp8 and in_fp8(name, shape):
            tensors[name], tensors[name + "_scale_inv"] = quantise(value)
        else:
            tensors[name] = value.bfloat16()
        if name.endswith("k_norm.weight"):
            tensors[name.replace("weight", "bias")] = (.2 * torch.randn(shape)).bfloat16()
        if name.endswith("mlp.gate.weight"):
            tensors[name.replace("weight", "e_score_correction_bias")] = .1 * torch.randn(shape[0])
    return tensors


def write_large(folder):
    CONFIG.update(hidden_size=1024, intermediate_size=2048, moe_intermediate_size=512, num_hidden_layers=8, n_routed_experts=64, n_group=1,
                  num_experts_per_tok=4, num_nextn_predict_layers=0, eos_token_id=-1)
    del CONFIG["quantization_config"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(random_tensors(fp8=False), folder / "model.safetensors", {"format": "pt"})


def write_tiny(folder):
    CONFIG.update(vocab_size=40, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, q_lora_rank=16,
                  kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=12, n_routed_experts=4, index_n_heads=2, index_head_dim=16, index_topk=8,
                  rope_scaling={"type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 1024})
    del CONFIG["quantization_config"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({name: tensor.half() for name, tensor in random_tensors(fp8=False).items()}, folder / "model.safetensors", {"format": "pt"})


# Names by the gguf package's own tables; keys as llama.cpp's converter writes them.
def write_gguf(folder, file):
    import gguf
    c = json.loads((folder / "config.json").read_text())
    layers, names = c["num_hidden_layers"] + c["num_nextn_predict_layers"], gguf.get_tensor_name_map(gguf.MODEL_ARCH.GLM_DSA, 80)
    w = gguf.GGUFWriter(str(file), "deepseek32")
    w.add_block_count(layers), w.add_context_length(c["max_position_embeddings"]), w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"]), w.add_head_count(c["num_attention_heads"]), w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(c["rms_norm_eps"]), w.add_rope_freq_base(c["rope_theta"]), w.add_rope_dimension_count(c["qk_rope_head_dim"])
    w.add_q_lora_rank(c["q_lora_rank"]), w.add_kv_lora_rank(c["kv_lora_rank"])
    w.add_key_length(c["kv_lora_rank"] + c["qk_rope_head_dim"]), w.add_value_length(c["kv_lora_rank"])
    w.add_key_length_mla(c["qk_nope_head_dim"] + c["qk_rope_head_dim"]), w.add_value_length_mla(c["v_head_dim"])
    w.add_leading_dense_block_count(c["first_k_dense_replace"]), w.add_expert_count(c["n_routed_experts"]), w.add_expert_used_count(c["num_experts_per_tok"])
    w.add_expert_shared_count(c["n_shared_experts"]), w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    w.add_expert_weights_scale(c["routed_scaling_factor"]), w.add_expert_weights_norm(True), w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    w.add_expert_group_count(c["n_group"]), w.add_expert_group_used_count(c["topk_group"]), w.add_nextn_predict_layers(c["num_nextn_predict_layers"])
    w.add_uint32("deepseek32.attention.indexer.head_count", c["index_n_heads"]), w.add_uint32("deepseek32.attention.indexer.key_length", c["index_head_dim"])
    w.add_uint32("deepseek32.attention.indexer.top_k", c["index_topk"])
    if scaling := c.get("rope_scaling"):
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN), w.add_rope_scaling_factor(scaling["factor"])
        w.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"]), w.add_rope_scaling_yarn_log_mul(.1 * scaling["mscale_all_dim"])
    if (folder / "tokenizer.json").exists():
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        ids = {**tokenizer["model"]["vocab"], **{added["content"]: added["id"] for added in tokenizer["added_tokens"]}}
        special = {added["content"] for added in tokenizer["added_tokens"]}
        tokens = sorted(ids, key=ids.get)
        w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("deepseek-v3"), w.add_token_list(tokens)
        w.add_token_types([3 if token in special else 1 for token in tokens])
        w.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]])
        w.add_eos_token_id(c["eos_token_id"])
    half, stacks = "quantization_config" not in c, {}

    def add(name, tensor):
        w.add_tensor(name, (tensor.half() if half and tensor.dim() > 1 else tensor).numpy())

    for name, tensor in read(folder).items():
        if ".kv_b_proj." in name:  # by head, keys turned
            by_head = tensor.view(c["num_attention_heads"], -1, c["kv_lora_rank"])
            keys, values = by_head.split([c["qk_nope_head_dim"], c["v_head_dim"]], 1)
            parts = {name.replace("kv_b_proj", "k_b_proj"): keys.transpose(1, 2).contiguous(), name.replace("kv_b_proj", "v_b_proj"): values.contiguous()}
        elif ".experts." in name:
            before, rest = name.split(".experts.")
            stacks.setdefault(before + ".experts." + rest.split(".", 1)[1], {})[int(rest.split(".")[0])] = tensor
            continue
        else:
            parts = {name.replace("e_score_correction_bias", "e_score_correction.bias"): tensor}
        for part, value in parts.items():
            add(names.get_name(part, try_suffixes=(".weight", ".bias")), value)
    for name, stack in stacks.items():
        add(names.get_name(name, try_suffixes=(".weight",)), torch.stack([stack[e] for e in range(len(stack))]))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def write(folder):
    tensors = random_tensors(fp8=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    places = {name: f"model-{1 + i % SHARDS:05d}-of-{SHARDS:06d}.safetensors" for i, name in enumerate(tensors)}
    assert len(tensors) > SHARDS
    for shard in set(places.values()):
        save_file({name: tensors[name].contiguous() for name in tensors if places[name] == shard}, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def read(folder):  # all tensors, as f32
    tensors = {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith("_scale_inv")}
    return {name: dequantise(tensor, tensors[name + "_scale_inv"]) if name + "_scale_inv" in tensors else tensor.float() for name, tensor in plain.items()}


def compare(folder, converted):
    expected, got = read(folder), read(converted)
    config = json.loads((converted / "config.json").read_text())
    if config["torch_dtype"] == "bfloat16" and "quantization_config" not in config:
        expected = {name: tensor if "e_score" in name else tensor.bfloat16().float() for name, tensor in expected.items()}
    different = [name for name in expected | got if name not in got or name not in expected or not torch.equal(expected[name], got[name])]
    print(json.dumps({"tensors": len(expected), "different": different}))


if __name__ == "__main__":
    {"write": write, "large": write_large, "tiny": write_tiny, "gguf": write_gguf, "compare": compare}[sys.argv[1]](*map(pathlib.Path, sys.argv[2:]))
