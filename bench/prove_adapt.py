"""Topics of ./dev prove about sparse attention for an existing checkpoint: adapt, long, needles,
needles_long, crossing, adapt_others."""
import json
import math
import pathlib
import shutil
import statistics
import tempfile
import time

from proof import BUILD, ROOT, call, check, fulgur, lines, python, speedrun
from prove_models import GOLDEN, smollm2_file, witness_environment


# SmolLM2 with sparse attention, by ./dev adapt's recipe, and how long it took; further seeds without what does not depend on them.
def adapted(seed=1):
    out = ROOT / ("runs/smollm2-sparse" if seed == 1 else f"runs/smollm2-sparse-{seed}")
    if not (out / "config.json").exists():
        shutil.rmtree(out.with_name(out.name + ".work"), ignore_errors=True)
        start = time.time()
        done = call(ROOT / "dev", "adapt", "--out", out, "--seed", seed, *(() if seed == 1 else ("--no-baselines",)))
        if done.returncode:
            raise SystemExit(f"./dev adapt: exit {done.returncode}\n{done.stderr[-2000:]}")
        (out / "seconds").write_text(str(time.time() - start))
        print("        " + done.stdout.replace("\n", "\n        "), flush=True)
    return out, float((out / "seconds").read_text()), json.loads((out / "adapt.json").read_text())


def mean_and_half(values):
    return statistics.mean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))


def said(values, form="{:.4f}"):
    mean, half = mean_and_half(values)
    return f"{form.format(mean)} +- {form.replace('+', '').format(half)}"


COMPARE = """
import json, struct, sys, numpy
def read(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + size])["logits"]
    begin, end = head["data_offsets"]
    return numpy.frombuffer(data[8 + size + begin:8 + size + end], dtype=numpy.float32).reshape(head["shape"])
a, b = read(sys.argv[1]), read(sys.argv[2])
print(json.dumps([float(abs(a - b).max()), bool((a.argmax(-1) == b.argmax(-1)).all())]))
"""


def write_tokens(path, ids):
    head = json.dumps({"tokens": {"dtype": "I32", "shape": [1, len(ids)], "data_offsets": [0, 4 * len(ids)]}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(i.to_bytes(4, "little") for i in ids))


# Every key chosen: the sparse form is the dense model.
def same_as_dense(model):
    cases = lines(GOLDEN / "smollm2/cases.jsonl")
    prompts = [c["ids"] for c in cases] + [c["ids"] + c["greedy"] for c in cases[:2]]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        worst, equal = 0.0, 0
        for ids in prompts:
            write_tokens(folder / "in.safetensors", ids)

            def logits(name, *flags):
                fulgur("forward", "--model", model, "--input", folder / "in.safetensors", "--output", folder / name, "--dump", "logits", *flags)
                return folder / name

            for own in ((), ("--chunk", 7)):
                got = call(python(), "-c", COMPARE, logits("sparse", "--attention", "sparse", *own), logits("dense", "--attention", "dense", *own), check=True)
                difference, same = json.loads(got.stdout)
                worst, equal = max(worst, difference), equal + same
    check(f"adapt: logits of {len(prompts)} prompts, every key chosen, beside dense, in one pass and through the cache", "within 2e-4", f"{worst:.1e}", worst < 2e-4)
    check("adapt: most likely tokens of them", f"{2 * len(prompts)} of {2 * len(prompts)}", f"{equal} of {2 * len(prompts)}", equal == 2 * len(prompts))


def adapt():
    seeds = [adapted(seed) for seed in (1, 2, 3)]
    same_as_dense(seeds[0][0])
    check("adapt: ./dev adapt, without build and downloads of the first call", "< 20 minutes", f"{seeds[0][1] / 60:.1f} minutes", seeds[0][1] < 1200)
    kinds = {d["kind"] for d in seeds[0][2]["kept"]["2048"]}
    check("adapt: held-out documents of 2,048 tokens, and kinds of them", ">= 20, 3", f"{len(seeds[0][2]['kept']['2048'])}, {len(kinds)}",
          len(seeds[0][2]["kept"]["2048"]) >= 20 and len(kinds) == 3)
    masses, excess = [], []
    for seed, (_, _, record) in enumerate(seeds, 1):
        documents = record["kept"]["2048"]
        for i, share in ((0, "1/16"), (1, "1/8")):
            mass = [d["keys"][i]["mass"]["taught"] for d in documents]
            more = [100 * math.expm1(d["keys"][i]["nll"]["taught"] - d["dense"]) for d in documents]
            print(f"        seed {seed}, {share} of 2K: attention kept {said(mass)}, perplexity {said(more, '{:+.2f}')} %")
        masses.append(statistics.mean(mass)), excess.append(statistics.mean(more))
    check("adapt: attention kept by 1/8 of 2K keys behind the warm-up, mean of documents, three seeds", ">= .935", ", ".join(f"{m:.4f}" for m in masses), min(masses) >= .935)
    check("adapt: perplexity there, more than dense", "<= .6 %", ", ".join(f"{e:+.2f} %" for e in excess), max(excess) <= .6)
    for seed, (_, _, record) in enumerate(seeds, 1):
        for i, share in ((0, "1/16"), (1, "1/8")):
            before = [100 * math.expm1(d["keys"][i]["nll"]["taught"] - d["dense"]) for d in record["kept"]["2048"]]
            behind = [100 * math.expm1(t["keys"][i]["nll"] - t["twin"]) for t in record["trained"]]
            smaller = [a - b for a, b in zip(before, behind)]
            check(f"adapt: seed {seed}, {share} of 2K, perplexity beside a dense twin's, before and behind the sparse stage", "smaller behind",
                  f"{said(before, '{:+.2f}')} %, {said(behind, '{:+.2f}')} %, paired {said(smaller, '{:+.2f}')}", statistics.mean(behind) < statistics.mean(before))


# The same at 8K: a document takes minutes, so there are fewer of them.
def long():
    out = ROOT / "runs/smollm2-sparse-8k"
    if not (out / "config.json").exists():
        done = call(ROOT / "dev", "adapt", "--out", out, "--measure", 8192, "--documents", 7, "--sparse-tokens", 0)
        if done.returncode:
            raise SystemExit(f"./dev adapt --measure 8192: exit {done.returncode}\n{done.stderr[-2000:]}")
        print("        " + done.stdout.replace("\n", "\n        "), flush=True)
    documents = json.loads((out / "adapt.json").read_text())["kept"]["8192"]
    for i, share in ((0, "1/16"), (1, "1/8")):
        of = {form: [d["keys"][i]["mass"][form] for d in documents] for form in ("taught", "best", "window")}
        check(f"long: attention kept by {share} of 8K keys, {len(documents)} documents; best, window", "above window",
              "; ".join(said(of[form]) for form in of), statistics.mean(of["taught"]) > statistics.mean(of["window"]))


def needles(contexts=(2048,)):
    out = adapted()[0]
    for context in contexts:
        rows = json.loads(fulgur("--json", "eval", "needles", "--model", out, "--contexts", context, "--samples", 200))["needles"]
        for keys in (8, 1):
            of = {r["form"]: r for r in rows if r["keys"] == keys}
            check(f"needles: {keys} told in {context} tokens, 200 questions: sparse, dense, window right", "sparse within 2 points of dense",
                  ", ".join(f"{form} {of[form]['right']} ({of[form]['low']:.3f} to {of[form]['high']:.3f})" for form in ("sparse", "dense", "window")),
                  of["sparse"]["right"] >= of["dense"]["right"] - 4)


def needles_long():
    needles((4096, 8192))


# Where the sparse form overtakes the dense one.
def crossing():
    out = adapted()[0]
    results = json.loads(fulgur("bench", "model", "--model", out, "--depth", "0,1K,2K,4K,7K", "--dtype", "f32").splitlines()[-1])["results"]
    for what in ("prefill", "decode"):
        gains = {r["depth"]: r["gain"] for r in results if r["what"] == what and r["form"] == "sparse"}
        for r in results:
            if r["what"] == what:
                check(f"crossing: {what} behind {r['depth_name']}, {r['form']}", "as measured",
                      f"{r['tokens_per_second']:.1f} tokens/s, {r['share']:.2f} of the limit, {r['bytes'] / r['rows'] / 1e6:.1f} MB a token", True)
        over = [depth for depth, gain in gains.items() if gain > 1]
        check(f"crossing: {what}, sparse beside dense by depth", "faster behind 7K",
              ", ".join(f"{depth}: {gain:.2f}x" for depth, gain in gains.items()) + f"; from {min(over) if over else 'none'} on", gains[max(gains)] > 1)


# The same command on other checkpoints.
def adapt_others():
    run = speedrun()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        official = folder / "official"
        call(python(), ROOT / "tests/official.py", "write", official, env=witness_environment(), check=True)
        shutil.copy(GOLDEN / "tokenizer/tokenizer.json", official)
        dense = max((run / "checkpoints").glob("pretrain-*"))
        for name, model, keys, flags in (("the speedrun's dense checkpoint", dense, "own", ("--context", 512)), ("the same", dense, "tied", ("--context", 512)),
                                         ("random MLA and experts in FP8", official, "own", ("--context", 256, "--sequences", 4))):
            out = folder / f"out-{keys}-{model.name}"
            text = run / "text"
            kinds = [text / kind for kind in ("anarchism", "python", "sqlite")]
            fulgur("adapt", "--model", model, "--data", *kinds, "--out", out, "--index-keys", keys, "--look-every", 10, *flags)
            record = json.loads((out / "adapt.json").read_text())
            documents = next(iter(record["kept"].values()))
            taught, fresh, window = ([d["keys"][1]["mass"][form] for d in documents] for form in ("taught", "fresh", "window"))
            more = [100 * math.expm1(d["keys"][1]["nll"]["taught"] - d["dense"]) for d in documents]
            check(f"adapt_others: {name}, {keys} keys, {len(documents)} documents: attention kept by 1/8", "more than before it was taught",
                  f"{said(taught)}, before {said(fresh)}, window {said(window)}; perplexity {said(more, '{:+.2f}')} %", statistics.mean(taught) > statistics.mean(fresh))
            text = json.loads(fulgur("--json", "generate", "--model", out, "--prompt", "The ", "--max-tokens", 20))["text"]
            check(f"adapt_others: {name}, {keys} keys: generate", "text", repr(text), len(text) > 4)


TOPICS = [adapt, long, needles, needles_long, crossing, adapt_others]
