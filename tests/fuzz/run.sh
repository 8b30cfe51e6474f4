#!/bin/sh
# Fuzzes the readers of files: run.sh [SECONDS] [TARGET]
# SECONDS a target (default 30; 0 only replays the corpus), TARGET one of tests/fuzz/*.cc (default: all, one on each core).
# One line a target; exit 1 on a finding, which then says where its input lies.
# Environment: FULGUR_FUZZ_BUILD (build folder, default build-fuzz), Torch_DIR (that libtorch), CXX (a clang with libFuzzer).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=${FULGUR_FUZZ_BUILD:-$root/build-fuzz}

say() { printf 'fuzz: %s\n' "$*" >&2; }

seconds=${1:-30}
case $seconds in
  *[!0-9]*) say "expected a number of seconds, got $seconds" && exit 2 ;;
esac
targets=$(cd "$here" && for source in *.cc; do printf '%s ' "${source%.cc}"; done)
if [ $# -ge 2 ]; then
  [ -f "$here/$2.cc" ] || { say "expected a target of: ${targets}; got $2" && exit 2; }
  targets=$2
fi

if [ -z "${FULGUR_FUZZ_CHILD:-}" ]; then
  if [ ! -f "$build/build.ninja" ]; then
    mkdir -p "$build"
    cmake -S "$here" -B "$build" -G Ninja ${Torch_DIR:+-DTorch_DIR="$Torch_DIR"} >"$build/configure.log" 2>&1 ||
      { cat "$build/configure.log" >&2; exit 1; }
  fi
  # shellcheck disable=SC2086
  cmake --build "$build" --target $(printf 'fuzz_%s ' $targets) >"$build/build.log" 2>&1 || { cat "$build/build.log" >&2; exit 1; }
fi
if [ $# -lt 2 ]; then
  [ "$seconds" = 0 ] || say "$(echo "$targets" | wc -w) readers, $seconds s each, $(nproc) side by side"
  # shellcheck disable=SC2086
  printf '%s\n' $targets | FULGUR_FUZZ_CHILD=1 xargs -P "$(nproc)" -n 1 sh "$here/run.sh" "$seconds" || exit 1
  exit 0
fi
target=$2

# Files that targets write lie in memory, and go with this script.
TMPDIR=$(mktemp -d /dev/shm/fulgur-fuzz.XXXXXX 2>/dev/null || mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 130' INT TERM
symbolizer=$(command -v llvm-symbolizer-14 || command -v llvm-symbolizer || true)
export ASAN_OPTIONS="allow_addr2line=1:quarantine_size_mb=16:detect_leaks=1${symbolizer:+:external_symbolizer_path=$symbolizer}${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
export UBSAN_OPTIONS="print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}"
export OMP_NUM_THREADS=1
limits="-timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=256"

status=0
# Names what went wrong in a log, and the input.
finding() {
  status=1
  findings=$((findings + 1))
  what=$(grep -m 1 -E 'broken promise|what\(\):|runtime error|Assertion|ERROR: ' "$1" | sed 's/^[ =0-9]*//')
  say "$target: ${what:-see $1}"
  say "  input: $2"
  say "  again: FULGUR_FUZZ_BUILD=$build; $build/fuzz_$target $limits $2"
}

fuzzer=$build/fuzz_$target
seeds=$here/corpus/$target
grown=$build/corpus/$target # the seeds, and what was worth keeping of earlier runs
found=$build/findings/$target
log=$build/$target.log
findings=0
mkdir -p "$grown" "$found"
for seed in "$seeds"/*; do
  name=${seed##*/}
  case $name in
    crash-*) # found once: replayed alone, so that one which came back hides no other
      # shellcheck disable=SC2086
      if "$fuzzer" $limits -artifact_prefix="$TMPDIR/" "$seed" >"$build/$target.$name.log" 2>&1; then
        rm "$build/$target.$name.log"
      else
        rm -f "$grown/$name"
        finding "$build/$target.$name.log" "$seed"
        continue
      fi
      ;;
  esac
  cp "$seed" "$grown/"
done
how="-max_total_time=$seconds"
[ "$seconds" -gt 0 ] || how="-runs=0"
[ ! -f "$here/$target.dict" ] || how="$how -dict=$here/$target.dict"
# shellcheck disable=SC2086
"$fuzzer" $limits $how -max_len=8192 -print_final_stats=1 -artifact_prefix="$found/" "$grown" >"$log" 2>&1 ||
  finding "$log" "$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)"
printf '%-12s %10s execs %6s edges %4s inputs %3s findings\n' "$target" \
  "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
  "$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)" "$(ls "$grown" | wc -l)" $findings
[ $status = 0 ] || say "when a finding is mended, keep its input: cp INPUT $here/corpus/TARGET/crash-WHAT"
exit $status
