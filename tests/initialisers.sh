#!/bin/sh
# Objects compiled for one instruction set must run nothing when a program starts: that would be on any processor.
#   tests/initialisers.sh OBJECT...
[ $# -gt 0 ] || { echo "expected objects, got none" >&2; exit 2; }
for object; do
  ! nm "$object" | grep -q _GLOBAL__sub_I || { echo "$object: makes something when a program starts (nm: _GLOBAL__sub_I)" >&2; bad=1; }
done
[ -z "${bad:-}" ] || exit 1
echo "$# objects"
