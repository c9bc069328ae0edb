/* cpu.c: asks the processor itself. */
#include "cpu.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>

const char *
attn_level_name(enum attn_level level)
{
    static const char *const names[ATTN_LEVELS] = {"baseline", "avx2", "avx512"};
    return names[level];
}

#if defined(__x86_64__) || defined(__i386__)

#include <cpuid.h>

/* Bit numbers: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID. */
#define BIT(n) (UINT32_C(1) << (n))

enum { NAME_LEAF = 0x80000002, NAME_LEAVES = 3, NAME_BYTES = 48 };

/* A CPU may have registers that its operating system does not save: XCR0 tells which it does. */
static uint64_t
saved_registers(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Everything that the target pragmas of isa/avx2.c and isa/avx512.c name is looked for. */
enum attn_level
attn_cpu_level(void)
{
    const uint32_t fma = BIT(12), popcnt = BIT(23), osxsave = BIT(27), avx = BIT(28), f16c = BIT(29); /* leaf 1, ecx */
    const uint32_t bmi = BIT(3), avx2 = BIT(5), bmi2 = BIT(8);                                        /* leaf 7, ebx */
    const uint32_t avx512f = BIT(16), avx512dq = BIT(17), avx512cd = BIT(28), avx512bw = BIT(30), avx512vl = BIT(31);
    const uint32_t lzcnt = BIT(5);                                         /* leaf 0x80000001, ecx */
    const uint64_t sse_avx = BIT(1) | BIT(2);                              /* XCR0 */
    const uint64_t sse_avx512 = sse_avx | BIT(5) | BIT(6) | BIT(7);
    const uint32_t one = fma | popcnt | osxsave | avx | f16c, seven = bmi | avx2 | bmi2;
    const uint32_t seven512 = avx512f | avx512dq | avx512cd | avx512bw | avx512vl;

    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & one) != one)
        return ATTN_BASELINE;
    const uint64_t saved = saved_registers();
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || (c & lzcnt) != lzcnt)
        return ATTN_BASELINE;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & seven) != seven || (saved & sse_avx) != sse_avx)
        return ATTN_BASELINE;
    return (b & seven512) == seven512 && (saved & sse_avx512) == sse_avx512 ? ATTN_AVX512 : ATTN_AVX2;
}

static char name[NAME_BYTES + 1];

static void
read_name(void)
{
    uint32_t words[NAME_LEAVES][4];
    for (int leaf = 0; leaf < NAME_LEAVES; leaf++)
        if (!__get_cpuid(NAME_LEAF + leaf, &words[leaf][0], &words[leaf][1], &words[leaf][2], &words[leaf][3]))
            return;
    memcpy(name, words, NAME_BYTES);
    const size_t blanks = strspn(name, " "); /* some processors pad on the left */
    memmove(name, name + blanks, NAME_BYTES + 1 - blanks);
}

const char *
attn_cpu_name(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_name);
    return name;
}

#else

enum attn_level
attn_cpu_level(void)
{
    return ATTN_BASELINE;
}

const char *
attn_cpu_name(void)
{
    return "";
}

#endif
