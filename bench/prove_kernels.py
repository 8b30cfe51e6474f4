"""Topics of ./dev prove: kernels at the machine's limit. Each row is one bar; shares are of peaks measured in the same run, ratios
the median of pairs."""
import json
import pathlib
import statistics
import sys

from proof import BUILD, ROOT, call, check, fulgur

# What `bench ops --filter` selects, the figure that has a bar, the bar. "faster" is beside the reference of the same run.
BARS = [
    ("linear", "f32", "faster", .85),
    ("linear", "bf16", "faster", 1.0),
    ("linear of 2 GB", "N1 I1024 O4096 f32 packed", "share", .85),
    ("linear of 2 GB", "N1 I1024 O4096 bf16 packed", "share", .85),
    ("linear of 2 GB", "f32", "faster", .85),
    ("linear of 2 GB", "bf16", "faster", 1.0),
    ("indexer_top_k V3.2", "", "share", .65),
    ("sparse_mla V3.2", "", "share", .60),
    ("sparse_mla V3.2 backward", "", "share", .45),
    ("dense_mla V3.2", "", "share", .65),
    ("dense_mla V3.2 backward", "", "share", .50),
    ("indexer_kl_dense V3.2 train", "", "share", .50),
    ("experts", "N512", "share", .60),
    ("attention core", "train N256 S32K", "faster", 2.6),
    ("attention core", "train N256 S64K", "faster", 4.3),
    ("attention core", "train N256 S128K", "faster", 6.5),
    ("attention core", "decode", "faster", 10.0),
]
ROW_OF_TOP_K = ("top_k", "R64", 3.0)  # times one reading of the scores


# What must scale with threads: compute-bound (the attention core is made of these), and bound by memory.
COMPUTE = ["linear train", "indexer_top_k V3.2", "sparse_mla V3.2", "dense_mla V3.2", "indexer_kl_dense V3.2", "experts"]
MEMORY = [("linear of 2 GB", "N1 "), ("top_k", "R64"), ("adamw", "")]


def bench(what, threads, filter, *flags):
    return json.loads(fulgur("bench", what, "--threads", threads, "--filter", filter, *flags).splitlines()[-1])


def of(name):
    return [r for r in bench("ops", 2, name)["results"] if r["name"] == name]


# The machine is shared: what misses its bar is measured up to twice more. All figures are shown; the last counts.
def tries(first, bar, again):
    values = [first]
    while values[-1] < bar and len(values) < 3:
        values.append(again())
    return values


def kernels():
    done = {}
    for name, case, kind, bar in BARS:
        if name not in done:
            done[name] = of(name)
        rows = [r for r in done[name] if case in r["case"]]
        if not rows:
            check(f"{name} {case}", f"{kind} >= {bar}", "no such case", False)
        for r in rows:
            values = tries(r[kind], bar, lambda: [n[kind] for n in of(name) if n["case"] == r["case"]][0])
            check(f"{name}, {r['case']}", f"{kind} >= {bar}", f"{', '.join(f'{v:.2f}' for v in values)}; {r['seconds'] * 1e3:.2f} ms",
                  values[-1] >= bar)
    name, case, bar = ROW_OF_TOP_K
    readings = lambda: [1 / r["share"] for r in of(name) if case in r["case"]][0]
    values = tries(-readings(), -bar, lambda: -readings())
    check("top-2048 of 128K scores", f"<= {bar} readings", ", ".join(f"{-v:.2f}" for v in values), -values[-1] <= bar)
    cost_by_context()
    for r in bench("train", 2, "")["results"]:
        check(f"{r['name']} step", "share >= .50", f"{r['share']:.2f} ({r['share_of_best']:.2f} of the run's best peak), "
              f"{r['faster'] or 0:.2f} times as fast as PyTorch", r["share"] >= .50)
        check(f"{r['name']} step, memory beside the plan", "within 10 %", f"{r['peak_bytes'] / r['planned_bytes'] - 1:+.1%}",
              abs(r["peak_bytes"] / r["planned_bytes"] - 1) <= .10)
        check(f"{r['name']} step, memory taken from the system", "0", str(r["arena_grown_bytes"]), r["arena_grown_bytes"] == 0)


# A token's cost is its FLOP at one rate, whatever the context. All contexts are measured in turn, thrice.
def cost_by_context():
    shares = {}
    for _ in range(3):
        for r in of("attention forward"):
            shares.setdefault(r["case"], []).append(r["share"])
    shares = {case: statistics.median(values) for case, values in shares.items()}
    rate = (min(shares.values()) + max(shares.values())) / 2
    for case, share in shares.items():
        check(f"cost a token, {case}", "the model's within 15 %", f"{rate / share - 1:+.1%} at {share:.2f} of peak", abs(rate / share - 1) <= .15)


# Whatever the neighbours leave of the second core, they leave to the peak measured beside each repetition too: where that gains 2.0
# times, the bar is 1.85.
def scaling():
    siblings = {f.read_text().strip() for f in pathlib.Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")}
    print(f"  threads of one core: {sorted(siblings)}")
    rows = [("ops", r, .925) for name in COMPUTE for r in bench("ops", 2, name, "--scaling")["results"]]
    rows += [("train", r, .925) for r in bench("train", 2, "", "--scaling")["results"]]
    rows += [("ops", r, .9) for name, case in MEMORY for r in bench("ops", 2, name, "--scaling")["results"]
             if r["name"] == name and case in r["case"]]
    for what, r, part in rows:
        gain = lambda r: r["faster"] / r["machine_scaling"]
        again = lambda: [gain(n) for n in bench(what, 2, r["name"], "--scaling")["results"] if (n["name"], n["case"]) == (r["name"], r["case"])][0]
        values = tries(gain(r), part, again)
        check(f"{r['name']}, {r['case']}, two threads beside one", f">= {part} of what the peak gains",
              f"{', '.join(f'{v:.2f}' for v in values)}; first {r['faster']:.2f}, the peak {r['machine_scaling']:.2f}", values[-1] >= part)


def instructions():
    if call("valgrind", "--version").returncode:
        call("apt-get", "install", "-y", "-qq", "--no-install-recommends", "valgrind")
    done = call(sys.executable, ROOT / "bench/callgrind.py", BUILD / "bin/kernels")
    last = (done.stdout + done.stderr).strip().splitlines()[-1]
    check("instructions of the kernels, AVX2 and portable", "none 3 % more than recorded", last, done.returncode == 0)


TOPICS = [kernels, scaling, instructions]
