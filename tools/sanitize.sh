#!/bin/sh
# A part of the tests with the C code built under ASan and UBSan, in its own build folder.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
lib=$root/build/sanitize/lib
flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g"
CC=gcc CFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" ATTNPY_EXTRA_CFLAGS="$flags" \
    .venv/bin/python setup.py -q build --build-base build/sanitize --build-lib "$lib"

# The test that is left out measures memory, which has a shadow here. Outside leaks are Python's own; PYTHONMALLOC=malloc shows every object to ASan. NumPy allocates more than there is in the tests of MemoryError.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so)"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:handle_segv=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONMALLOC=malloc PYTHONPATH="$lib"
cd build/sanitize
python=$root/.venv/bin/python
"$python" -c "import attnpy._core as core; assert core.__file__.startswith('$lib'), core.__file__"
exec "$python" -m pytest -q -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider "$@" \
    --deselect "$root"/tests/test_attention_backward_hidden.py::test_memory_grows_with_the_length \
    "$root"/tests/test_softmax*.py "$root"/tests/test_attention*.py "$root"/tests/test_masks_attention.py "$root"/tests/test_engine*.py "$root"/tests/test_golden.py
