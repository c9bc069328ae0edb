/* cpu.h: which instruction-set level this processor (and its operating system) can run. */
#ifndef ATTN_CPU_H
#define ATTN_CPU_H

enum attn_level { ATTN_BASELINE, ATTN_AVX2, ATTN_AVX512, ATTN_LEVELS };

/* avx2: AVX2, FMA, F16C, BMI2. avx512: also AVX-512 F, BW, DQ, VL, CD. */
enum attn_level attn_cpu_level(void);
const char *attn_level_name(enum attn_level level); /* "baseline", "avx2", "avx512" */
const char *attn_cpu_name(void);                    /* the processor's own name, or "" */

#endif
