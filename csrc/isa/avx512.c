/* avx512.c: every kernel for processors with AVX-512 (F, BW, DQ, VL, CD).
 * System headers come before the target, so that only what follows is compiled for it. */
#include "../kernels/attention.h"
#include "../kernels/attention_backward.h"
#include "../kernels/attention_jvp.h"
#include "../kernels/attention_merge_backward.h"
#include "../kernels/attention_varlen.h"
#include "../kernels/layers.h"
#include "../kernels/layers_embedding.h"
#include "../kernels/layers_loss.h"
#include "../kernels/layers_linear.h"
#include "../kernels/layers_norm.h"
#include "../kernels/positions_learned.h"
#include "../kernels/positions_relative.h"
#include "../kernels/positions_rotary.h"
#include "../kernels/positions_sinusoidal.h"
#include "../kernels/probe.h"
#include "../kernels/softmax.h"
#include "isa.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined __x86_64__
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi,bmi2,popcnt,lzcnt"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi,bmi2,popcnt,lzcnt")
#endif

#define ATTN_ISA_AVX512
#define VECTOR_BYTES 64
#define LEVEL(name) name##_avx512
#include "level.inc.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

#else
const struct attn_kernels attn_kernels_avx512 = {0}; /* never chosen: attn_cpu_level() says so */
#endif
