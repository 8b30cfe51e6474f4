"""Topics of ./dev prove about reinforcement learning: estimators, learning, exact, skills, indexer,
stabilisers, throughput."""
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

from proof import BUILD, ROOT, call, check, fulgur, lines, python, speedrun, tests


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


RECIPE = ROOT / "recipes/speedrun.toml"


# Three seeds, each from raw text; text is measured before and behind post-training.
def learning():
    for seed in (1, 2, 3):
        run, name = speedrun(seed), f"learning, seed {seed}"
        show_learning(name, run, "lookup2", .8, (.25, .35))
        bits = json.loads((run / "summary.json").read_text())["bits_per_byte"]
        before, behind = bits["sparse"]["sparse"], bits["rl"]["sparse"]
        check(f"{name}: bits per byte of text, before and behind post-training", "within .05", f"{before:.4f}, {behind:.4f}", behind - before < .05)


# Weights at the end of a run, which was ended by kill -9 so many seconds behind each of these steps, and gone on with.
def weights_of(out, flags, threads, kills=()):
    command = [str(part) for part in (BUILD / "bin/fulgur", "--threads", threads, "train", "rl", RECIPE, "--out", out, *flags)]
    metrics = out / "metrics.jsonl"

    def came_to(step):  # of whole lines: the last may be in the making
        done = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
        return any(line["stage"] == "rl" and line["step"] >= step for line in map(json.loads, done))

    for step, seconds in kills:
        process = subprocess.Popen(command + (["--resume"] if out.exists() else []), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not came_to(step):
            if process.poll() is not None:
                raise SystemExit(f"exact: expected a run that comes to step {step}, got one that ended")
            time.sleep(.02)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    fulgur("--threads", threads, "train", "rl", RECIPE, "--out", out, *flags, *(["--resume"] if out.exists() else []))
    newest = max((out / "checkpoints").glob("rl-*"))
    return (newest / "model.safetensors").read_bytes()


def exact():
    sft = max((speedrun() / "checkpoints").glob("sft-*"))
    choose = random.Random(1)
    small = ["--init", sft, "--tasks", "lookup2,guess,calculator:2", "--prompts", 6, "--group", 4, "--top-p", .9, "--eval-tasks", 0, "--drop-equal", "false"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for dtype in ("f32", "bf16"):
            weights_of(folder / dtype, small + ["--steps", 100, "--dtype", dtype], 2)
            steps = of(folder / dtype, "rl")
            mismatch, matched = max(line["mismatch"] for line in steps), sum(line["matched_tokens"] for line in steps)
            check(f"exact: 100 steps in {dtype}, experts, selections, tools, user turns, top-p .9", "difference 0",
                  f"{mismatch} of {matched:.0f} tokens", mismatch == 0 and matched > 10000)
        for mode, flags in (("", []), (" ahead of its steps", ["--staleness", 2, "--round-tokens", 24])):
            runs, kills = {}, ()
            for name, threads in (("two threads", 2), ("one thread", 1), ("killed at three moments", 2)):
                start, out = time.time(), folder / f"{name}{mode}".replace(" ", "-")
                runs[name] = weights_of(out, small + ["--steps", 50, "--updates", 2, "--checkpoint-every", 5, *flags], threads,
                                        kills if name.startswith("killed") else ())
                seconds = time.time() - start
                kills = kills or [(choose.randint(first, first + 10), choose.uniform(0, seconds / 50)) for first in (3, 17, 32)]
                print(f"        {name}{mode}: {seconds:.0f} s" +
                      (", killed behind steps " + ", ".join(f"{step} + {s:.2f} s" for step, s in kills) if name.startswith("killed") else ""))
                shutil.rmtree(out)
            for name in list(runs)[1:]:
                check(f"exact: weights behind 50 steps{mode}, {name}", "those of two threads", "equal" if runs[name] == runs["two threads"] else "differ",
                      runs[name] == runs["two threads"])
        shutil.rmtree(folder / "f32")


# What hurts without each stabiliser: rollouts 16 steps old, drawn from 8-bit weights and keys with top-p .8.
HARD = {"tasks": "lookup2", "prompts": 6, "group": 8, "steps": 48, "staleness": 16, "sampler-weights": "int8", "sampler-cache": "int8",
        "top-p": .8, "exact": "false", "lr": 2e-4, "eval-tasks": 300, "kl-coefficient": .02, "off-policy-delta": .05}
OFF = {"all on": {}, "no sequence mask": {"off-policy-delta": 0}, "no KL": {"kl-coefficient": 1e-9}, "strong KL": {"kl-coefficient": .5}, "KL by k3": {"kl": "k3"},
       "routing not kept": {"keep-routing": "false"}, "selection not kept": {"keep-selection": "false"},
       "sampling mask not kept": {"keep-sampling-mask": "false"}, "indexer frozen": {"indexer-kl": 0}}


def stabilisers():
    sft = max((speedrun() / "checkpoints").glob("sft-*"))
    runs = {}
    print("        means over the last 16 steps that had anything to train on, of 48; KL(old||new) = ratio - 1 + log old/new; pass rates of 300 held-out tasks")
    print("        " + "".join(f"{title:>15}" for title in ("", "pass before", "pass behind", "entropy", "ratio", "KL(old||new)", "masked", "KL(ref)", "experts", "selections",
                                                        "indexer KL")))
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in OFF.items():
            out = pathlib.Path(folder) / name.replace(" ", "-")
            fulgur("train", "rl", RECIPE, "--init", sft, "--out", out, *(x for key, value in (HARD | flags).items() for x in (f"--{key}", value)))
            last, evals = [line for line in of(out, "rl") if line["trained_groups"] > 0][-16:], of(out, "rl-eval")
            mean = lambda get: sum(get(line) for line in last) / len(last)
            row = {"before": evals[0]["pass"]["lookup2"]["test"]["rate"], "behind": evals[-1]["pass"]["lookup2"]["test"]["rate"],
                   **{key: mean(lambda line: line[key]) for key in ("entropy", "ratio", "log_old_over_new", "masked", "changed_experts", "changed_selections")},
                   "kl_ref": mean(lambda line: line["kl_ref"]["unbiased"]) if "kl_ref" in last[0] else float("nan"),
                   "indexer": mean(lambda line: sum(line["kl"]) / len(line["kl"])) if "kl" in last[0] else float("nan")}
            row["kl_old"] = row["ratio"] - 1 + row["log_old_over_new"]
            runs[name] = row
            print(f"        {name:>23}" + "".join(f"{row[key]:>12.4f}" for key in ("before", "behind", "entropy", "ratio", "kl_old", "masked", "kl_ref", "changed_experts",
                                                                              "changed_selections", "indexer")), flush=True)
    on = runs["all on"]
    check("stabilisers: sequence mask, share of members with A < 0 it silences", "above 0 on, 0 off", f"{on['masked']:.3f}, {runs['no sequence mask']['masked']:.3f}",
          on["masked"] > 0 and runs["no sequence mask"]["masked"] == 0)
    for name, what in (("routing not kept", "forced experts"), ("selection not kept", "forced keys"), ("sampling mask not kept", "the kept set")):
        check(f"stabilisers: KL(old||new) with {what}, and without", "lower with", f"{on['kl_old']:.4f}, {runs[name]['kl_old']:.4f}", on["kl_old"] < runs[name]["kl_old"])
    strong, none = runs["strong KL"]["kl_ref"], runs["no KL"]["kl_ref"]
    check("stabilisers: KL to the reference with a coefficient of .5, and of 0", "lower with", f"{strong:.4f}, {none:.4f}", strong < none)


# The same step, TRL's and a plain PyTorch loop's: the best setting of a sweep, then it and ours in turn, so that both meet the same
# machine.
def throughput():
    shape = ["--prompts", 16, "--group", 16, "--prompt-tokens", 128, "--max-tokens", 64]
    with tempfile.TemporaryDirectory() as folder:
        config, parts, plain_parts = pathlib.Path(folder) / "config.json", [], []

        def ours():
            out = fulgur("bench", "grpo", *shape, "--steps", 3).strip().split("\n")
            said = json.loads(out[-1])
            config.write_text(json.dumps(said["model"]))
            print("        " + "\n        ".join(out[:-1]), flush=True)
            if said["mismatch"] != 0:
                check("throughput: difference of log-probabilities, trainer and sampler", "0", said["mismatch"], False)
            parts.append([row["seconds"] for row in said["results"]])
            return sum(parts[-1])

        def theirs(script, environment, flags, seconds_of):
            done = call(python(), ROOT / "bench" / script, "--config", config, *shape, *flags, env=environment)
            if done.returncode:
                print(f"        {script} {' '.join(map(str, flags))}: exit {done.returncode}: {done.stderr[-300:]}")
                return float("inf")
            said = json.loads(done.stdout.splitlines()[-1])
            print(f"        {script} {' '.join(map(str, flags))}: {seconds_of(said):.2f} s a step; {said}", flush=True)
            return seconds_of(said)

        def beside(name, script, environment, settings, seconds_of, bar):
            best = min(settings, key=lambda flags: theirs(script, environment, [*flags, "--steps", 1], seconds_of))
            ratios, mine = [], [ours()]
            for _ in range(3):
                other = theirs(script, environment, [*best, "--steps", 2], seconds_of)
                mine.append(ours())
                ratios.append(other / ((mine[-2] + mine[-1]) / 2))
            check(f"throughput: a GRPO step beside {name}'s at its best setting ({' '.join(map(str, best))}), three pairs", f">= {bar}x",
                  ", ".join(f"{ratio:.1f}" for ratio in ratios), statistics.median(ratios) >= bar)

        ours()
        plain = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
        plain |= {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "17179869184"}

        def of_plain(said):
            plain_parts.append([said["rollout_seconds"], said["update_seconds"]])
            return sum(plain_parts[-1])

        parts.clear()
        beside("plain PyTorch", "plain_grpo.py", plain, [["--micro", n] for n in (16, 64, 256)], of_plain, 3)
        # What exactness costs: the same shapes by libtorch's products and attention, whose bits change with the batch.
        for i, part in enumerate(("sampling", "update")):
            mine, other = (statistics.median(row[i] for row in rows) for rows in (parts, plain_parts[-3:]))
            check(f"throughput: overhead of exactness, {part} beside libtorch's composition of it", "<= 18 %", f"{100 * (mine / other - 1):+.0f} %", mine / other <= 1.18)
        beside("TRL", "trl_grpo.py", {**plain, "PYTHONPATH": str(trl_packages())},
               [["--micro", n, "--attention", attention] for n in (16, 64, 256) for attention in ("sdpa", "eager")], lambda said: said["seconds"], 10)
        for model in ("same", "active"):
            theirs("trl_grpo.py", {**plain, "PYTHONPATH": str(trl_packages())}, ["--micro", 64, "--attention", "eager", "--model", model, "--steps", 2],
                   lambda said: said["seconds"])


SKILLS = """scale = 1
vocab_size = 1024
[model]
max_position_embeddings = 1024
[sft]
tokens = "%s"
context = 1024
batch_tokens = 2048
micro_tokens = 2048
lr = 2e-3
indexer_lr = 1e-3
schedule = "linear"
text_share = 0.3
[rl]
prompts = 16
group = 16
context = 1024
max_tokens = 96
max_answers = 4
lr = 1e-4
eval_every = 10
eval_tasks = 1000
"""


# Other families from the same base: the calculator must reach .95; reversal and addition are curves to look at.
def skills():
    base = max((speedrun() / "checkpoints").glob("sparse-*"))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for task, tokens, hasty, steps, bar in (("calculator", "2.4M", .2, 20, .95), ("reverse:2", "600k", 0, 20, .8), ("arithmetic", "3.6M", 0, 20, .8)):
            recipe, out, name = folder / "skills.toml", folder / task.replace(":", "-"), task.split(":")[0]
            recipe.write_text(SKILLS % tokens)
            demos = folder / "demos.jsonl"
            demos.write_text(fulgur("tasks", "demos", task, "--count", 8000, "--hasty", hasty))
            fulgur("train", "sft", recipe, "--out", out, "--init", base, "--data", speedrun() / "data", "--messages", demos)
            fulgur("train", "rl", recipe, "--out", out, "--tasks", task, "--steps", steps)
            for line in of(out, "rl-eval"):
                p = line["pass"][name]["test"]
                print(f"        {task}, behind {line['step'] * 256:5d} rollouts: {p['rate']:.3f} ({p['low']:.3f} to {p['high']:.3f}) of {p['tasks']}")
            last, mismatch = of(out, "rl-eval")[-1]["pass"][name]["test"]["rate"], max(line["mismatch"] for line in of(out, "rl"))
            check(f"skills: {task} at the end", f">= {bar}", f"{last:.3f}", last >= bar)
            check(f"skills: {task}, difference of log-probabilities", "0", mismatch, mismatch == 0)


# The same run with the indexer trained by its own KL, and frozen: what it selects in 16 held-out episodes at the end.
def indexer():
    sft = max((speedrun() / "checkpoints").glob("sft-*"))
    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        for name, strength in (("trained", 1), ("frozen", 0)):
            out = pathlib.Path(folder) / name
            fulgur("train", "rl", RECIPE, "--init", sft, "--out", out, "--indexer-kl", strength, "--eval-every", 0)
            evals = of(out, "rl-eval")
            for when, line in (("before", evals[0]), ("behind", evals[-1])):
                rows[name, when] = line["indexer"]["lookup2"]
                print(f"        {name}, {when}: pass {line['pass']['lookup2']['test']['rate']:.3f}; " + "; ".join(
                    f"{key} " + " ".join(f"{value:.3f}" for value in rows[name, when][key]) for key in ("kl", "recall", "mass")))
    mean = lambda name, key: sum(rows[name, "behind"][key]) / len(rows[name, "behind"][key])
    check("indexer: KL of trained and frozen at the end", "lower trained", f"{mean('trained', 'kl'):.4f}, {mean('frozen', 'kl'):.4f}",
          mean("trained", "kl") < mean("frozen", "kl"))
    check("indexer: recall of trained and frozen at the end", "higher trained", f"{mean('trained', 'recall'):.4f}, {mean('frozen', 'recall'):.4f}",
          mean("trained", "recall") > mean("frozen", "recall"))


def trl_packages():
    packages = BUILD / "trl"
    if not (packages / "trl").exists():
        pip = (python(), "-m", "pip", "install", "-q", "--target", packages)
        call(*pip, "--no-deps", "trl==1.16.0", "accelerate==1.15.0", check=True)
        call(*pip, "transformers==5.23.0", "datasets==5.2.0", "psutil", check=True)
    return packages


TOPICS = [estimators, learning, exact, skills, indexer, stabilisers, throughput]
