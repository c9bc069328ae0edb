#!/bin/sh
# The stress test of the thread pool under ThreadSanitizer. The compiler is $CC, or gcc.
set -eu
cd "$(dirname "$0")/.."
mkdir -p build
program=build/pool_stress_tsan
${CC:-gcc} -std=gnu11 -O1 -g -pthread -fsanitize=thread -Wno-unused-function -DATTN_SANITIZED $(ls tests/c/pool_stress*.c csrc/core/*.c) -lm -o $program
# A child of fork goes on working; by default the sanitizer ends it. What it cannot follow is left out by ATTN_SANITIZED.
TSAN_OPTIONS="die_after_fork=0 halt_on_error=0 exitcode=66" exec $program
