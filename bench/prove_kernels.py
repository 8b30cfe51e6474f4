"""Topic of ./dev prove: kernels at the machine's limit. Each row is one bar; shares are of peaks measured in the same run."""
import json
import sys

from proof import BUILD, ROOT, call, check, fulgur

# What `bench ops --filter` selects, the figure that has a bar, the bar. "faster" is beside the reference of the same run.
BARS = [
    ("linear", "f32", "faster", .85),
    ("linear", "bf16", "faster", 1.0),
    ("linear of 2 GB", "N1 I1024 O4096 f32", "share", .85),
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


def bench(what, threads, filter):
    return json.loads(fulgur("bench", what, "--threads", threads, "--filter", filter).splitlines()[-1])["results"]


def figure(r, kind):
    return r["share"] if kind == "share" else (r["reference_seconds"] or 0) / r["seconds"]


def kernels():
    done = {}
    for name, case, kind, bar in BARS:
        if name not in done:
            done[name] = [r for r in bench("ops", 2, name) if r["name"] == name]
        rows = [r for r in done[name] if case in r["case"]]
        if not rows:
            check(f"{name} {case}", f"{kind} >= {bar}", "no such case", False)
        for r in rows:
            value = figure(r, kind)
            check(f"{name}, {r['case']}", f"{kind} >= {bar}", f"{value:.2f}, {r['seconds'] * 1e3:.2f} ms", value >= bar)
    name, case, bar = ROW_OF_TOP_K
    for r in bench("ops", 2, name):
        if r["name"] == name and case in r["case"]:
            check("top-2048 of 128K scores", f"<= {bar} readings", f"{1 / r['share']:.2f}", 1 / r["share"] <= bar)
    for r in bench("train", 2, ""):
        check(f"{r['name']} step", "share >= .50", f"{r['share']:.2f}", r["share"] >= .50)
        check(f"{r['name']} step, memory beside the plan", "within 10 %", f"{r['peak_bytes'] / r['planned_bytes'] - 1:+.1%}",
              abs(r["peak_bytes"] / r["planned_bytes"] - 1) <= .10)
        check(f"{r['name']} step, memory taken from the system", "0", str(r["arena_grown_bytes"]), r["arena_grown_bytes"] == 0)


def instructions():
    if call("valgrind", "--version").returncode:
        call("apt-get", "install", "-y", "-qq", "--no-install-recommends", "valgrind")
    done = call(sys.executable, ROOT / "bench/callgrind.py", BUILD / "bin/kernels")
    last = (done.stdout + done.stderr).strip().splitlines()[-1]
    check("instructions of the kernels, AVX2 and portable", "none 3 % more than recorded", last, done.returncode == 0)


TOPICS = [kernels, instructions]
