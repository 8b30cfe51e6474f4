#!/bin/sh
# Installs Fulgur into an empty prefix and builds another project against it: run.sh BUILD_FOLDER TORCH_DIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
cmake --install "$1" --prefix "$prefix" >/dev/null
cmake -S "$here" -B "$prefix/guest" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DTorch_DIR="$2" -Wno-dev >/dev/null 2>"$prefix/log" || { cat "$prefix/log"; exit 1; }
ninja -C "$prefix/guest" --quiet
golden=$here/../golden/model
"$prefix/guest/texts" "$golden/dsa-small/config.json" "$golden/weights/model.safetensors" 1 2 3 | grep "^3 texts, 24 tokens in"
"$prefix/guest/texts" "$golden/dsa-small/config.json" "$golden/weights/model.safetensors" 1 999 2>&1 | grep "expected token ids below"
"$prefix/bin/fulgur" --version
"$prefix/bin/fulgur" speedrun --data "$prefix/nothing" --out "$prefix/run" 2>&1 | grep -q "expected a file or folder"
