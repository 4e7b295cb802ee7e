/* Counts the instructions of every decision on the test vectors, and the stack that a decision takes. */
#include "board.h"
#include "actor.h"
#include "vectors.h"

#define PAINT 0xa5a5a5a5u
#define PAINTED 512 /* words */

static struct actor actor;

static void print_number(uint32_t number)
{
    char text[12];
    int i = 11;
    text[i] = 0;
    do
        text[--i] = (char)('0' + number % 10);
    while (number /= 10);
    text[--i] = ' ';
    print(text + i);
}

__attribute__((noinline)) static void act(const float *observation)
{
#ifdef ACTOR_CHOICES
    (void)actor_act(&actor, observation);
#else
    static float action[ACTOR_OUTPUTS];
    actor_act(&actor, observation, action);
#endif
}

__attribute__((noinline)) static uint32_t stack(void)
{
    volatile uint32_t *low = (volatile uint32_t *)__builtin_frame_address(0) - 16 - PAINTED;
    uint32_t i, top = (uint32_t)(uintptr_t)(low + PAINTED);
    for (i = 0; i < PAINTED; i++)
        low[i] = PAINT;
    act(vectors[0].observation);
    for (i = 0; i < PAINTED && low[i] == PAINT; i++) {
    }
    return top - (uint32_t)(uintptr_t)(low + i) + 64;
}

int main(void)
{
    uint32_t i, unit = counted_by(), empty, start = counted();
    empty = counted() - start;
    actor_reset(&actor);
    print("stack");
    print_number(stack());
    print("\ninstructions");
    for (i = 0; i < VECTORS; i++) {
        if (vectors[i].begins)
            actor_reset(&actor);
        start = counted();
        act(vectors[i].observation);
        print_number((uint32_t)(((counted() - start - empty) & COUNTER_MASK) * 100000ull / unit));
    }
    print("\n");
    return 0;
}
