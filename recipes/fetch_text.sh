#!/bin/sh
# Real text from Debian packages, about 20 MB: prose, dictionaries, manuals. Nothing is installed and nothing committed.
#   recipes/fetch_text.sh OUT         the mix of the speedrun
#   recipes/fetch_text.sh --kjv OUT   the King James Bible, a file a chapter
#   recipes/fetch_text.sh --long OUT  long documents of three kinds, a folder each: prose, manuals, code
set -eu
what=mix
case ${1:-} in --kjv | --long) what=${1#--} && shift ;; esac
[ $# -eq 1 ] && [ "${1#-}" = "$1" ] || { echo "[text] usage: recipes/fetch_text.sh [--kjv | --long] OUT" >&2; exit 2; }
out=$1
[ ! -f "$out/.complete" ] || exit 0
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
  echo "[text] expected apt-get and dpkg-deb, got a machine without them" >&2
  echo "  hint: give your own text with --data PATH" >&2
  exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
rm -rf "$out"
mkdir -p "$out"

# Unpacks packages into one tree; downloads are checked by apt against the signed index.
fetch() {
  chmod 755 "$work"
  (cd "$work" && apt-get download -qq "$@" >apt.log 2>&1) || {
    cat "$work/apt.log" >&2
    echo "[text] could not download: $*" >&2
    echo "  hint: apt-get update (as root), or give your own text with --data PATH" >&2
    exit 1
  }
  for archive in "$work"/*.deb; do dpkg-deb -x "$archive" "$work/tree"; done
}

# take NAME EVERY FILES...: copies every EVERY-th of the files on standard input, in order of path, into OUT/NAME.
take() {
  mkdir -p "$out/$1"
  LC_ALL=C sort | awk -v every="$2" 'NR % every == 1 || every == 1' | while read -r file; do
    cp "$file" "$out/$1/$(echo "${file#"$work/tree/"}" | tr / _)"
  done
}

# A dictionary is one large file: pieces of 100 KB, every EVERY-th.
dictionary() {
  mkdir -p "$work/dict"
  zcat "$work/tree/usr/share/dictd/$1.dict.dz" | split -C 100k -a 4 --additional-suffix=.txt - "$work/dict/$1-"
  mkdir -p "$out/dictionaries"
  find "$work/dict" -name "$1-*" | LC_ALL=C sort | awk -v every="$2" 'NR % every == 1 || every == 1' |
    xargs -I{} cp {} "$out/dictionaries/"
}

if [ "$what" = kjv ]; then
  fetch bible-kjv bible-kjv-text libreadline8
  LD_LIBRARY_PATH=$(dirname "$(find "$work/tree" -name libreadline.so.8)")
  export LD_LIBRARY_PATH
  # "Ge1:1 In the beginning ..." -> OUT/<number of chapter>-<book><chapter>.txt, a verse a line.
  "$work/tree/usr/bin/bible" -p "$work/tree/usr/lib" -f gen1:1-rev22:21 </dev/null | awk -v out="$out" '
    { reference = $1; sub(/^[^ ]+ /, ""); chapter = reference; sub(/:.*/, "", chapter)
      if (chapter != last) { if (file) close(file); file = sprintf("%s/%04d-%s.txt", out, ++number, chapter); last = chapter }
      print > file }'
elif [ "$what" = long ]; then
  fetch anarchism python3.11-doc libpython3.11-stdlib
  find "$work/tree/usr/share/doc/anarchism/html" -name 'sec*.html' -size +36k | take prose 1
  find "$work/tree/usr/share/doc/python3.11/html/_sources" -name '*.txt' -size +36k | take manuals 1
  find "$work/tree/usr/lib/python3.11" -name '*.py' -size +30k | take code 1
else
  fetch anarchism dict-gcide dict-foldoc dict-jargon dict-devil fortunes debian-policy developers-reference \
    python3.11-doc perl-doc sqlite3-doc git-doc
  tree=$work/tree/usr/share
  dictionary gcide 8
  dictionary foldoc 3
  dictionary jargon 1
  dictionary devil 1
  find "$tree/doc/anarchism/html" -name 'sec*.html' | take anarchism 4
  find "$tree/games/fortunes" -type f ! -name '*.*' | take fortunes 1
  find "$tree/doc/debian-policy" -name '*.txt.gz' | take debian 1
  find "$tree/developers-reference" -maxdepth 1 -name '*.html' | take debian 1
  find "$tree/doc/python3.11/html/_sources" -name '*.txt' | take python 3
  find "$work/tree/usr/share/perl" -name '*.pod' ! -name 'perl5*delta.pod' | take perl 2
  find "$tree/doc/sqlite3" -name '*.html' | take sqlite 4
  find "$tree/doc/git" -name '*.txt' | take git 2
fi
[ "$(find "$out" -type f | wc -l)" -gt 100 ] || { echo "[text] expected over 100 files in $out, got fewer" >&2; exit 1; }
touch "$out/.complete"
