#!/bin/sh
# Every function on small arrays under memcheck. Valgrind knows no AVX-512: the two levels below it are run.
set -eu
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo "valgrind: not installed (the system package valgrind)" >&2; exit 1; }
root=$PWD
lib=$root/build/valgrind/lib
ATTNPY_EXTRA_CFLAGS="-O1 -g" .venv/bin/python setup.py -q build --build-base build/valgrind --build-lib "$lib"
export PYTHONMALLOC=malloc PYTHONPATH="$lib" OPENBLAS_NUM_THREADS=1
for level in avx2 baseline; do
    echo "valgrind: level $level"
    ATTNPY_ISA=$level ATTNPY_NUM_THREADS=2 valgrind -q --error-exitcode=9 --suppressions=tools/valgrind.supp --num-callers=25 \
        .venv/bin/python tools/valgrind_cases.py "$lib"
done
