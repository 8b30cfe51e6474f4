"""Topics of ./dev prove about reinforcement learning: estimators, learning, exact."""
import json
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time

from proof import BUILD, ROOT, check, fulgur, lines, run_anew, tests


def estimators():
    tests("estimators: golden grpo vectors, gradients beside autograd in every form, exact KL gradient", "rl: (Objective|Advantages)")
    rows = json.loads(fulgur("bench", "kl").strip().split("\n")[-1])["results"]
    worst = max(row["unbiased"]["bias"] for row in rows)
    check("estimators: bias of the unbiased KL's gradient, nine pairs of policies", "< 1e-5 of the exact gradient", f"{worst:.1e}", worst < 1e-5)
    for kl in ("k1", "k2", "k3"):
        stale = [row[kl]["bias"] for row in rows if row["pi_old"] > 0]
        check(f"estimators: bias of {kl}'s off policy (the check can fail)", "> .1", f"{min(stale):.2f} to {max(stale):.2f}", min(stale) > .1)
    for row in rows:
        print("        " + ", ".join(f"{k} {v['bias']:.2f} +- {v['deviation']:.2f}" if isinstance(v, dict) else f"{k} {v}" for k, v in row.items()))


def of(run, stage):
    return [line for line in lines(run / "metrics.jsonl") if line["stage"] == stage]


# What a run's reinforcement learning came to: rollouts behind which each evaluation was made, and its pass rates.
def show_learning(name, run, family, least, most):
    steps, evals = of(run, "rl"), of(run, "rl-eval")
    mismatch, matched = max(line["mismatch"] for line in steps), sum(line["matched_tokens"] for line in steps)
    check(f"{name}: largest difference of a log-probability, trainer and sampler", "0", f"{mismatch} of {matched:.0f} tokens, {len(steps)} steps",
          mismatch == 0 and matched > 0)
    a_step = steps[0]["rollouts"]
    for line in evals:
        p = line["pass"][family]
        print("        behind {:5d} rollouts: ".format(line["step"] * a_step) +
              ", ".join(f"{split} {q['rate']:.3f} ({q['low']:.3f} to {q['high']:.3f}) of {q['tasks']}" for split, q in p.items()))
    first, last = evals[0]["pass"][family], evals[-1]["pass"][family]
    check(f"{name}: held-out tasks behind demonstrations", f"{most[0]} to {most[1]}", f"{first['test']['rate']:.3f}", most[0] <= first["test"]["rate"] <= most[1])
    early = [line for line in evals if 0 < line["step"] * a_step <= 6000]
    best = max((line["pass"][family]["test"]["rate"] for line in early), default=0)
    check(f"{name}: within 6,000 rollouts", ">= .65", f"{best:.3f}", best >= .65)
    check(f"{name}: at the end", f">= {least}", f"{last['test']['rate']:.3f}", last["test"]["rate"] >= least)
    check(f"{name}: names never trained", ">= .5", f"{last['fresh']['rate']:.3f}", last["fresh"]["rate"] >= .5)


RECIPE = ROOT / "recipes/tools.toml"


def tools(seed=1):
    run = ROOT / ("runs/tools" if seed == 1 else f"runs/tools-{seed}")
    if not (run / "summary.json").exists():
        run_anew(run, "--recipe", RECIPE, "--seed", seed)
    return run


# Three seeds, each from raw text; text is measured before and behind post-training.
def learning():
    for seed in (1, 2, 3):
        run, name = tools(seed), f"learning, seed {seed}"
        show_learning(name, run, "lookup2", .8, (.25, .35))
        bits = json.loads((run / "summary.json").read_text())["bits_per_byte"]
        before, behind = bits["sparse"]["sparse"], bits["rl"]["sparse"]
        check(f"{name}: bits per byte of text, before and behind post-training", "within .05", f"{before:.4f}, {behind:.4f}", behind - before < .05)


# `kills` times ended by kill -9 at a random moment, and gone on with.
def weights_of(out, flags, threads, kills, choose):
    command = [BUILD / "bin/fulgur", "--threads", threads, "train", "rl", RECIPE, "--out", out, *flags]
    command = [str(part) for part in command]
    while kills > 0:
        process = subprocess.Popen(command + (["--resume"] if out.exists() else []), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(choose.uniform(3, 20))
            break  # it ended before
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills -= 1
    fulgur("--threads", threads, "train", "rl", RECIPE, "--out", out, *flags, *(["--resume"] if out.exists() else []))
    newest = max((out / "checkpoints").glob("rl-*"))
    return (newest / "model.safetensors").read_bytes()


def exact():
    sft = max((tools() / "checkpoints").glob("sft-*"))
    choose = random.Random(1)
    small = ["--init", sft, "--tasks", "lookup2,guess,calculator:2", "--prompts", 6, "--group", 4, "--top-p", .9, "--eval-tasks", 0]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for dtype in ("f32", "bf16"):
            weights_of(folder / dtype, small + ["--steps", 100, "--dtype", dtype], 2, 0, choose)
            steps = of(folder / dtype, "rl")
            mismatch, matched = max(line["mismatch"] for line in steps), sum(line["matched_tokens"] for line in steps)
            check(f"exact: 100 steps in {dtype}, experts, selections, tools, user turns, top-p .9", "difference 0",
                  f"{mismatch} of {matched:.0f} tokens", mismatch == 0 and matched > 10000)
        runs = {}
        for name, threads, kills in (("two threads", 2, 0), ("one thread", 1, 0), ("killed at three moments", 2, 3)):
            start = time.time()
            runs[name] = weights_of(folder / name.replace(" ", "-"), small + ["--steps", 50, "--updates", 2, "--checkpoint-every", 5], threads, kills, choose)
            print(f"        {name}: {time.time() - start:.0f} s")
        for name in list(runs)[1:]:
            check(f"exact: weights behind 50 steps, {name}", "those of two threads", "equal" if runs[name] == runs["two threads"] else "differ",
                  runs[name] == runs["two threads"])
        shutil.rmtree(folder / "f32")


TOPICS = [estimators, learning, exact]
