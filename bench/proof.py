"""What the topics of ./dev prove share: checks, and the program."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / os.environ.get("FULGUR_BUILD", "build")
checks = []


def check(name, bar, measured, ok):
    checks.append({"name": name, "bar": bar, "measured": measured, "ok": bool(ok)})
    print(f"  {'ok  ' if ok else 'FAIL'}  {name}: {measured} (bar: {bar})", flush=True)


def call(*command, **more):
    return subprocess.run([str(part) for part in command], text=True, capture_output=True, **more)


def fulgur(*arguments, **more):
    done = call(BUILD / "bin/fulgur", *arguments, **more)
    if done.returncode:
        raise SystemExit(f"fulgur {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def tests(name, regex, build=BUILD, **more):
    out = call("ctest", "--test-dir", build, "-R", regex, **more).stdout
    found = re.search(r"(\d+)% tests passed, (\d+) tests failed out of (\d+)", out)
    if not found:
        return check(name, "all pass", "no test ran", False)
    check(name, "all pass", f"{int(found[3]) - int(found[2])} of {found[3]} pass", found[2] == "0")


def python():
    own = ROOT / ".venv/bin/python"
    return own if own.exists() else pathlib.Path(sys.executable)


# A Python with these packages of PyPI's, in a folder of the build's.
def pip_python(*packages, dependencies=True):
    folder = BUILD / "pip" / "-".join(re.sub(r"[^a-z0-9.]+", "_", package) for package in packages)
    own = folder / "bin/python"
    if not own.exists():
        call(sys.executable, "-m", "venv", folder, check=True)
        done = call(own, "-m", "pip", "install", "-q", *(() if dependencies else ("--no-deps",)), *packages)
        if done.returncode:
            shutil.rmtree(folder)
            raise SystemExit(f"pip install {' '.join(packages)}: {done.stderr[-1000:]}")
    return own


def run_anew(out, *flags):
    shutil.rmtree(out, ignore_errors=True)
    fulgur("speedrun", "--out", out, *flags)
    return json.loads((out / "summary.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


# A model of English alone, which topics about text, formats and drafts share.
def text_run():
    run = ROOT / "runs/text"
    if not (run / "summary.json").exists():
        run_anew(run, "--recipe", ROOT / "recipes/text.toml")
    return run


# The speedrun with this seed.
def speedrun(seed=1):
    run = ROOT / ("runs/speedrun" if seed == 1 else f"runs/speedrun-{seed}")
    if not (run / "summary.json").exists():
        run_anew(run, "--seed", seed)
    return run
