#!/bin/sh
# Says what ran; fails if anything complains.
set -u
cd "$(dirname "$0")/.."
bin=.venv/bin
failed=0

run() {
    name=$1
    shift
    if "$@"; then echo "$name: passed"; else echo "$name: FAILED"; failed=1; fi
}

warnings() { # compiler
    flags="-std=gnu11 -O2 -ffp-contract=fast -fvisibility=hidden -fPIC -Wall -Wextra -Wshadow -Werror -Wno-missing-field-initializers"
    include=$($bin/python -c "import sysconfig, numpy; print('-isystem', sysconfig.get_path('include'), '-isystem', numpy.get_include())")
    status=0
    for file in $(find csrc -name '*.c'); do
        "$1" $flags -DPy_LIMITED_API=0x030b0000 $include -c "$file" -o /dev/null || status=1
    done
    return $status
}

run "ruff $($bin/ruff --version | cut -d' ' -f2)" $bin/ruff check attnpy tests benchmarks examples tools setup.py
run "clang-format $($bin/clang-format --version | grep -o '[0-9.]*' | head -1)" $bin/clang-format --dry-run -Werror $(find csrc -name '*.[ch]')
for compiler in gcc clang; do
    if command -v $compiler >/dev/null; then
        run "$compiler $($compiler -dumpversion)" warnings $compiler
    else
        echo "$compiler: not found, not run"
    fi
done
exit $failed
