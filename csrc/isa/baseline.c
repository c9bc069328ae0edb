/* baseline.c: every kernel for any processor: 16-byte vectors, SSE2 on x86-64. */
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

#if defined __SSE2__
#include <emmintrin.h>
#endif

#define ATTN_ISA_BASELINE
#define VECTOR_BYTES 16
#define LEVEL(name) name##_baseline
#include "level.inc.h"
