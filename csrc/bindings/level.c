/* level.c: what the environment says at import: the instruction-set level and the debug block size. */
#include "families.h"

#include "../core/cpu.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#ifndef ATTNPY_CSRC_HASH
#define ATTNPY_CSRC_HASH "unknown"
#endif

static enum attn_level level;

static bool
choose_isa(void)
{
    const struct attn_kernels *const kernels[ATTN_LEVELS] = {&attn_kernels_baseline, &attn_kernels_avx2, &attn_kernels_avx512};
    const char *wanted = getenv("ATTNPY_ISA");
    enum attn_level highest = attn_cpu_level();
    level = highest;
    if (wanted && *wanted) {
        int found = 0;
        while (found < ATTN_LEVELS && strcmp(wanted, attn_level_name((enum attn_level)found)) != 0)
            found++;
        if (found == ATTN_LEVELS || found > (int)highest) {
            const char *what = found == ATTN_LEVELS ? "is not a level" : "is above this CPU";
            PyErr_Format(PyExc_ImportError, "ATTNPY_ISA=%s %s: it must be baseline, avx2 or avx512, and this CPU's level is %s", wanted, what,
                         attn_level_name(highest));
            return false;
        }
        level = (enum attn_level)found;
    }
    engine_kernels = kernels[level];
    return true;
}

static bool
choose_debug_blocks(void)
{
    const char *text = getenv("ATTNPY_DEBUG_BLOCKS");
    engine_debug_blocks = 0;
    if (!text || !*text)
        return true;
    char *end;
    long keys = strtol(text, &end, 10);
    if (*end || keys < 4 || keys > ATTN_BLOCK) {
        PyErr_Format(PyExc_ImportError, "ATTNPY_DEBUG_BLOCKS=%s: it must be a number of keys, 4 ... %d", text, ATTN_BLOCK);
        return false;
    }
    engine_debug_blocks = (int)keys;
    return true;
}

/* Reads the environment; ImportError where it asks for what cannot be. */
bool
level_choose(void)
{
    return choose_isa() && choose_debug_blocks();
}

const char *
level_in_use(void)
{
    return attn_level_name(level);
}

/* What build this is and what it runs on. */
PyObject *
level_config(void)
{
#ifdef __clang__
    const char *compiler = "clang " __clang_version__;
#else
    const char *compiler = "gcc " __VERSION__;
#endif
    return Py_BuildValue("{s:s,s:s,s:s,s:s,s:s,s:s,s:i}", "level", level_in_use(), "cpu_level", attn_level_name(attn_cpu_level()), "cpu",
                         attn_cpu_name(), "compiler", compiler, "csrc_hash", ATTNPY_CSRC_HASH, "numpy_target", "2.1", "debug_blocks",
                         engine_debug_blocks);
}
