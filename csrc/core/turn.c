/* turn.c: waiting for one's turn. Short waits spin; longer ones give the processor to whoever the turn belongs to. */
#include "attn.h"

#include <sched.h>

enum { SPINS = 2000, LOOK = 64 };

bool
attn_wait_turn(const atomic_int *turn, int mine, const atomic_int *stop)
{
    for (long round = 0; atomic_load_explicit(turn, memory_order_acquire) != mine; round++) {
        if (round % LOOK == 0 && attn_stopped(stop))
            return false;
        if (round > SPINS)
            sched_yield();
#if defined __x86_64__ || defined __i386__
        else
            __builtin_ia32_pause();
#endif
    }
    return true;
}
