#!/usr/bin/env python3
"""Instructions of each kernel, counted by Callgrind, beside those of bench/callgrind.json.

  python3 bench/callgrind.py [build/bin/kernels]            exit code 1 where a kernel needs 3 % more than recorded
  python3 bench/callgrind.py --update [build/bin/kernels]   records what it counts

A clock says little on a shared machine; a count is the same on every run. Only AVX2 and portable kernels: Debian's Valgrind
knows no AVX-512. Counts depend on the compiler, so another one than recorded is compared with nothing.
"""
import json
import os
import pathlib
import re
import subprocess
import sys

RECORD = pathlib.Path(__file__).with_suffix(".json")
TOLERANCE = 0.03


def count(program, case, isa):
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=kernels_run_once", program,
         "--once", "--threads", "1", "--case", case, "--isa", isa], capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"[callgrind] expected instruction counts of {case}, got:\n{done.stderr[-2000:]}")
    return int(found[1])


def compiler():
    return subprocess.run(["c++", "--version"], capture_output=True, text=True).stdout.splitlines()[0]


def main():
    arguments = [a for a in sys.argv[1:] if a != "--update"]
    program = arguments[0] if arguments else os.environ.get("FULGUR_BUILD", "build") + "/bin/kernels"
    cases = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()
    now = {isa: {case: count(program, case, isa) for case in cases} for isa in ("avx2", "portable")}
    if "--update" in sys.argv:
        RECORD.write_text(json.dumps({"compiler": compiler(), "instructions": now}, indent=1) + "\n")
        return
    before = json.loads(RECORD.read_text())
    if before["compiler"] != compiler():
        print(f"recorded with {before['compiler']}, this is {compiler()}: not compared")
        return
    slower = 0
    for isa, counts in now.items():
        for case, instructions in counts.items():
            recorded = before["instructions"][isa].get(case)
            change = instructions / recorded - 1 if recorded else 0.0
            slower += change > TOLERANCE or not recorded
            print(f"{isa:9s} {case:24s} {instructions:12d} {change:+8.2%}" + (" SLOWER" if change > TOLERANCE else ""))
    print(f"{slower} slower than recorded by more than {TOLERANCE:.0%}")
    sys.exit(slower > 0)


if __name__ == "__main__":
    main()
