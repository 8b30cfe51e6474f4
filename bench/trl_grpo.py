"""TRL's GRPOTrainer at the same step as `fulgur bench grpo`, the reference beside it: one setting of it.

    python bench/trl_grpo.py --config config.json --threads 2 --prompts 16 --group 16 --prompt-tokens 128 --max-tokens 64 --micro 64

--model same: transformers' own DeepseekV32ForCausalLM of config.json. total, active: a Llama as deep and as wide, with as
many parameters as that model has in all, or as many as a token of it uses. Key-value cache on, every answer --max-tokens
long, rewards from a random number generator, no reference model (beta 0), no second pass for old log-probabilities.
--micro sequences are a forward and backward pass. The last line is {"seconds", ...}: the median of the steps behind the
first.
"""
import argparse
import json
import random
import statistics
import tempfile
import time

import torch
import transformers
from datasets import Dataset
from datasets.table import InMemoryTable
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import GRPOConfig, GRPOTrainer


def words(vocab_size):
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # What would end an answer is outside the model's vocabulary, so that nothing but its length does.
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="<end>", padding_side="left")


def parameters(c, experts):
    """Of all layers, with so many routed experts; without embedding and head."""
    D, H = c["hidden_size"], c["num_attention_heads"]
    E = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    attention = D * c["q_lora_rank"] + c["q_lora_rank"] * H * E + D * (c["kv_lora_rank"] + c["qk_rope_head_dim"])
    attention += c["kv_lora_rank"] * H * (c["qk_nope_head_dim"] + c["v_head_dim"]) + H * c["v_head_dim"] * D
    dense, layers = c["first_k_dense_replace"], c["num_hidden_layers"]
    mixture = 3 * D * c["moe_intermediate_size"] * (experts + c["n_shared_experts"])
    return layers * attention + dense * 3 * D * c["intermediate_size"] + (layers - dense) * mixture


def model_of(c, kind, attention):
    if kind == "same":
        config = transformers.AutoConfig.for_model(**c)
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    D, H, layers = c["hidden_size"], c["num_attention_heads"], c["num_hidden_layers"]
    own = parameters(c, c["n_routed_experts"] if kind == "total" else c["num_experts_per_tok"])
    width = max(8, round((own / layers - 4 * D * D) / (3 * D)))
    config = transformers.LlamaConfig(vocab_size=c["vocab_size"], hidden_size=D, intermediate_size=width, num_hidden_layers=layers,
                                      num_attention_heads=H, num_key_value_heads=H, max_position_embeddings=4096, pad_token_id=0,
                                      bos_token_id=None, eos_token_id=None, attn_implementation=attention)
    return transformers.LlamaForCausalLM(config)


class Clock(transformers.TrainerCallback):
    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        self.begin = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self.begin)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    for name, value in {"threads": 2, "prompts": 16, "group": 16, "prompt-tokens": 128, "max-tokens": 64, "micro": 64, "steps": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", choices=["same", "total", "active"], default="total")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    c, choose = json.load(open(args.config)), random.Random(1)
    members = args.prompts * args.group
    prompt = lambda: " ".join(f"w{choose.randrange(2, c['vocab_size'])}" for _ in range(args.prompt_tokens))
    prompts = InMemoryTable.from_pydict({"prompt": [prompt() for _ in range(args.prompts * (args.steps + 1))]})
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(output_dir=folder, use_cpu=True, bf16=False, per_device_train_batch_size=args.micro,
                            gradient_accumulation_steps=members // args.micro, steps_per_generation=members // args.micro,
                            num_generations=args.group, max_completion_length=args.max_tokens, max_steps=args.steps + 1, beta=0.0,
                            temperature=1.0, learning_rate=1e-4, lr_scheduler_type="constant", save_strategy="no", report_to="none",
                            logging_strategy="no", gradient_checkpointing=False, dataloader_pin_memory=False, disable_tqdm=True,
                            generation_kwargs={"cache_implementation": args.cache} if args.cache != "dynamic" else None)
        trainer = GRPOTrainer(model=model_of(c, args.model, args.attention), args=config, processing_class=words(c["vocab_size"]),
                              reward_funcs=lambda completions, **_: [choose.random() for _ in completions],
                              train_dataset=Dataset(prompts, fingerprint="prompts"),
                              callbacks=[clock])
        trainer.train()
    print(json.dumps({"seconds": statistics.median(clock.seconds[1:]), "parameters": sum(p.numel() for p in trainer.model.parameters()),
                      "steps": len(clock.seconds)}))


if __name__ == "__main__":
    main()
