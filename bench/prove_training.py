"""Topics of ./dev prove about training one can trust: kills, parallel, faults, rank, extend, fuzz, sanitize."""
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from proof import BUILD, ROOT, call, check, fulgur, python, tests, text_run

STAGES = ("pretrain", "warmup", "sparse")
CLOCKS = {"seconds", "tokens_per_second", "share_of_peak", "rank_seconds"}  # what a clock says differs from run to run
# Tokens are multiplied by the square of the scale: 188, 94 and 94 steps.
RECIPE = """scale = 0.25
vocab_size = 300
[pretrain]
tokens = "3072k"
context = 64
batch_tokens = 1024
micro_tokens = 256
checkpoint_every = 7
[warmup]
tokens = "1536k"
context = 64
batch_tokens = 1024
micro_tokens = 256
checkpoint_every = 7
[sparse]
tokens = "1536k"
context = 64
batch_tokens = 1024
micro_tokens = 256
checkpoint_every = 7
"""


@contextlib.contextmanager
def workplace():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        corpus = ROOT / "tests/golden/tokenizer/train_corpus_a.jsonl"
        (folder / "recipe.toml").write_text(RECIPE)
        fulgur("tokenizer", "train", corpus, "--vocab-size", 300, "--out", folder / "tok.json")
        fulgur("data", "pack", corpus, "--tokenizer", folder / "tok.json", "--out", folder / "data", "--holdout-every", 5)
        yield folder


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Ranks:
    """One stage of a run in `size` processes of `threads` threads, in a session of their own."""

    def __init__(self, folder, run, stage, size=1, threads=1, more=()):
        port, self.log = free_port(), folder / f"{run}-{stage}.log"
        command = [BUILD / "bin/fulgur", "--threads", threads, "train", stage, folder / "recipe.toml", "--data", folder / "data",
                   "--out", folder / run, "--resume", *more]
        self.all = []
        for rank in range(size):
            env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            with open(self.log, "a") as log:
                self.all.append(subprocess.Popen([str(c) for c in command], env=env, stdout=log, stderr=log))

    def kill(self, which=None, how=signal.SIGKILL):
        for process in self.all if which is None else [self.all[which]]:
            process.send_signal(how)

    def wait(self):
        return [process.wait() for process in self.all]

    def running(self):
        return all(process.poll() is None for process in self.all)


def finish(folder, run, stage, **how):
    ranks = Ranks(folder, run, stage, **how)
    codes = ranks.wait()
    if any(codes):
        raise SystemExit(f"{run} {stage}: exit {codes}\n{ranks.log.read_text()[-2000:]}")


def result(run):
    """Hashes of the last checkpoints' tensors, in the order of their names, and the records without clocks."""
    hashes = {}
    for stage in STAGES:
        newest = sorted(p for p in run.glob(f"checkpoints/{stage}-*") if p.suffix != ".tmp")[-1:]
        for folder in newest:
            for file in ("model.safetensors", "optimizer.safetensors"):
                hashes[f"{folder.name}/{file}"] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return hashes, [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def kill_often(folder, run, kills, dice, **how):
    """Runs all stages; kills the processes `kills` times, one time in three while a checkpoint is being written."""
    done = in_write = 0
    for number, stage in enumerate(STAGES):
        wanted = kills * (number + 1) // len(STAGES)
        while True:
            ranks, start = Ranks(folder, run, stage, **how), time.time()
            until, writing = dice.uniform(.3, 1.3), dice.random() < .34
            while ranks.running() and done < wanted:
                inside = any((folder / run / "checkpoints").glob("*.tmp"))
                if inside if writing else time.time() - start > until:
                    ranks.kill(), ranks.wait()
                    done, in_write = done + 1, in_write + any((folder / run / "checkpoints").glob("*.tmp"))
                time.sleep(.0005)
            if not any(ranks.wait()):
                break
    return done, in_write


def kills():
    dice = random.Random(1)
    with workplace() as folder:
        for stage in STAGES:
            finish(folder, "whole", stage, threads=2)
        whole = result(folder / "whole")
        for name, how in {"1 thread": {"threads": 1}, "2 threads": {"threads": 2}, "2 processes": {"size": 2}}.items():
            run = f"killed-{name.replace(' ', '-')}"
            done, in_write = kill_often(folder, run, 30, dice, **how)
            got = result(folder / run)
            check(f"kill -9, {name}: weights and moments of all stages", "equal to the uninterrupted run's",
                  f"{sum(got[0].get(k) == v for k, v in whole[0].items())} of {len(whole[0])} equal behind {done} kills, {in_write} inside a checkpoint's write",
                  got[0] == whole[0] and done >= 30 and in_write > 0)
            check(f"kill -9, {name}: metrics.jsonl (but clocks)", "equal, each step once", f"{len(got[1])} lines, {'equal' if got[1] == whole[1] else 'other'}",
                  got[1] == whole[1])


def parallel():
    with workplace() as folder:
        finish(folder, "one", "pretrain", threads=2)
        for run in ("two", "again"):
            finish(folder, run, "pretrain", size=2)
        one, two, again = (result(folder / run) for run in ("one", "two", "again"))
        apart = max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(one[1][:20], two[1][:20]))
        check("two processes beside one with accumulation: losses of 20 steps", "<= 1e-6 relative", f"{apart:.1e}, of {len(one[1])} steps", apart <= 1e-6 and len(one[1]) >= 20)
        check("two processes twice: weights, moments, records", "same bits", "same" if two == again else "other", two == again)
        check("two processes beside one: weights, moments, records", "same bits", "same" if two == one else "other", two == one)
        for number, size in enumerate((2, 1, 2)):
            ranks = Ranks(folder, "turns", "pretrain", size=size)
            step = 28 * (number + 1)
            while ranks.running() and number < 2 and not (folder / f"turns/checkpoints/pretrain-{step:08}").exists():
                time.sleep(.002)
            if number < 2:
                ranks.kill(how=signal.SIGTERM)
            ranks.wait()
        turns = result(folder / "turns")
        check("2 -> 1 -> 2 processes by checkpoint", "the bits of one run", "same" if turns == one else "other", turns == one)
        starts = [s["processes"] for s in json.loads((folder / "turns/run.json").read_text())["starts"]]
        check("2 -> 1 -> 2: what run.json says", "[2, 1, 2]", str(starts), starts == [2, 1, 2])


def faults():
    out = call(BUILD / "bin/train_test", "--gtest_filter=CheckpointFaults.*").stdout
    print("\n".join(line for line in out.splitlines() if line.startswith("|") or "lost" in line), flush=True)
    passed = re.search(r"\[  PASSED  \] (\d+) tests", out)
    lost, tried = re.findall(r"(\d+) lost", out), re.findall(r"(\d+ failing calls|each of \d+ calls)", out)
    check("every system call of a checkpoint's write failing, or the process killed before it", "0 checkpoints lost",
          f"{', '.join(tried)}: {', '.join(lost)} lost", passed and len(tried) == 2 and set(lost) == {"0"})
    # A disk that is full, and one that turns read-only, in a mount namespace of our own.
    with workplace() as folder:
        finish(folder, "whole", "pretrain")
        script = folder / "mounted.sh"
        script.write_text(f"""set -u
mkdir -p {folder}/disk && mount -t tmpfs -o size=$1 none {folder}/disk && mkdir -p {folder}/disk/run
run="{BUILD}/bin/fulgur --threads 1 train pretrain {folder}/recipe.toml --data {folder}/data --out {folder}/disk/run --resume"
if [ $2 = read-only ]; then  # no kernel makes a disk read-only under open files, short of a fault of the disk
  $run & child=$!
  while [ ! -e {folder}/disk/run/checkpoints/pretrain-00000014 ]; do sleep .01; done
  kill $child; wait $child
  mount -o remount,ro {folder}/disk
fi
$run; echo exit $?
mount -o remount,rw,size=1g {folder}/disk; $run >/dev/null 2>&1; echo then $?
sha256sum <{folder}/disk/run/checkpoints/pretrain-00000188/model.safetensors
""")
        whole = hashlib.sha256((folder / "whole/checkpoints/pretrain-00000188/model.safetensors").read_bytes()).hexdigest()
        for name, size, says in (("full", "3m", "No space left on device"), ("read-only", "1g", "Read-only file system")):
            out = call("unshare", "-rm", "sh", script, size, name)
            text = out.stdout + out.stderr
            line = next((line for line in text.splitlines() if says in line), "no such line")
            check(f"a {name} disk: the run", "stops with exit 1 and a line", f"{line[:110]}", says in text and "exit 1" in text)
            check(f"a {name} disk, then room: the run", "goes on to the same weights", "same" if whole in text else text[-300:], whole in text)


def rank():
    with workplace() as folder:
        finish(folder, "whole", "pretrain", size=2)
        whole = result(folder / "whole")
        ranks = Ranks(folder, "hand", "pretrain", size=2)
        while not (folder / "hand/checkpoints/pretrain-00000014").exists():
            time.sleep(.002)
        ranks.kill(1)
        killed = time.time()
        code = ranks.all[0].wait()
        said = re.search(r"\[parallel\] (rank 1 of 2 .*?): expected.*", ranks.log.read_text())
        check("a rank killed: the other", "ends within seconds and names it", f"exit {code} behind {time.time() - killed:.1f} s: {said[0] if said else 'nothing'}",
              code == 1 and said and time.time() - killed < 15)
        log = folder / "torchrun.log"
        with open(log, "w") as out:
            agent = subprocess.Popen([str(c) for c in (
                python().with_name("torchrun"), "--nproc-per-node", 2, "--max-restarts", 3, "--master-port", free_port(), "--no-python", BUILD / "bin/fulgur",
                "train", "pretrain", folder / "recipe.toml", "--data", folder / "data", "--out", folder / "torchrun", "--resume")], stdout=out, stderr=out)
        while not (folder / "torchrun/checkpoints/pretrain-00000014").exists() and agent.poll() is None:
            time.sleep(.002)
        workers = subprocess.run(["pgrep", "-P", str(agent.pid)], text=True, capture_output=True).stdout.split()
        killed, restarted = time.time(), None
        os.kill(int(workers[-1]), signal.SIGKILL)
        while agent.poll() is None:
            starts = json.loads((folder / "torchrun/run.json").read_text())["starts"]
            if len(starts) > 1 and restarted is None:
                restarted = time.time() - killed
            time.sleep(.05)
        text = log.read_text()
        named = re.search(r"Signal 9.*|exitcode: -9.*|SIGKILL.*", text)
        check("a rank killed under torchrun", "detected, named, restarted", f"trained on behind {restarted or -1:.1f} s; {named[0][:80] if named else text[-200:]}",
              agent.returncode == 0 and restarted and named)
        got = result(folder / "torchrun")
        check("a rank killed under torchrun: weights, moments, records", "equal", "equal" if got == whole else "other", got == whole)


def extend():
    base, out = text_run(), ROOT / "runs/prove-extend"
    shutil.rmtree(out, ignore_errors=True)
    for stage in STAGES:
        fulgur("train", stage, ROOT / "recipes/extend.toml", "--data", base / "data", "--out", out, *(["--init", base] if stage == "pretrain" else []))
    rows = {}
    for name, model in (("before", base), ("after", out)):
        for r in json.loads(fulgur("eval", "perplexity", "--model", model, "--data", base / "data", "--forms", "dense", "sparse", "--contexts", 2048,
                                   "--tokens", 400000, "--json"))["perplexity"]:
            for p in r["by_position"]:
                rows.setdefault((p["first"], p["last"], p["tokens"]), {})[name, r["form"]] = p["bits_per_byte"]
    columns = [(name, form) for form in ("dense", "sparse") for name in ("before", "after")]
    print(f"  {'positions':>12} {'tokens':>8}" + "".join(f"{f'{form} {name}':>16}" for name, form in columns))
    for (first, last, count), row in rows.items():
        print(f"  {first:>6}-{last - 1:<5} {count:>8}" + "".join(f"{row[c]:>16.4f}" for c in columns), flush=True)
    for form in ("dense", "sparse"):
        far = [(row["before", form], row["after", form]) for (first, _, _), row in rows.items() if first >= 512]
        near = [(row["before", form], row["after", form]) for (first, _, _), row in rows.items() if first < 512]
        check(f"512 -> 2,048, {form}: bits/byte at positions 512 to 2047", "lower than before, each range", "; ".join(f"{b:.4f} -> {a:.4f}" for b, a in far),
              far and all(a < b for b, a in far))
        worst = max(a - b for b, a in near)
        check(f"512 -> 2,048, {form}: bits/byte below 512", "at most .02 worse", f"{worst:+.4f} at worst", worst <= .02)


def fuzz():
    done = call(ROOT / "dev", "fuzz", 600)
    print(done.stdout, flush=True)
    check("every reader fuzzed for 10 minutes", "no finding", f"exit {done.returncode}", done.returncode == 0)


def sanitize():
    for preset, what in (("sanitize", "the suite, address and undefined-behaviour sanitizers"), ("threads", "threads of our own, thread sanitizer")):
        done = subprocess.run(f"cmake --preset {preset} && cmake --build --preset {preset} && ctest --preset {preset}", shell=True, cwd=ROOT, text=True,
                              capture_output=True)
        found = re.search(r"(\d+)% tests passed.*out of \d+", done.stdout)
        check(what, "clean", found[0] if found else " ".join(done.stderr.split())[-300:], done.returncode == 0)
    done = call(ROOT / "dev", "lint")
    check("./dev lint", "clean", f"{done.stdout.count('error:')} findings, {done.stderr.count('.cc')} files", done.returncode == 0)


TOPICS = [kills, parallel, faults, rank, extend, fuzz, sanitize]
