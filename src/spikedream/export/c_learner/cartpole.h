/* CartPole-v1 (Barto, Sutton & Anderson 1983, as Gymnasium has it), in float. */
#ifndef CARTPOLE_H
#define CARTPOLE_H

#include <stdint.h>

#define CARTPOLE_STEPS 500 /* after which an episode is cut */

struct cartpole {
    float state[4]; /* position, velocity, angle, angular velocity */
    int steps;
    uint32_t random;
};

static inline float cartpole_uniform(struct cartpole *cartpole) /* in [0, 1): xorshift (Marsaglia 2003) */
{
    cartpole->random ^= cartpole->random << 13;
    cartpole->random ^= cartpole->random >> 17;
    cartpole->random ^= cartpole->random << 5;
    return (float)(cartpole->random >> 8) * (1.0f / 16777216.0f);
}

static inline void cartpole_reset(struct cartpole *cartpole)
{
    int i;
    for (i = 0; i < 4; i++)
        cartpole->state[i] = 0.1f * cartpole_uniform(cartpole) - 0.05f;
    cartpole->steps = 0;
}

/* Pushes to the left (0) or to the right (1) for 0.02 s; the task ends beyond 12 degrees or 2.4 m. Every step pays 1. */
static inline void cartpole_step(struct cartpole *cartpole, int choice, int *terminated, int *truncated)
{
    float *s = cartpole->state, a = s[2], square = a * a, force = choice ? 10.0f : -10.0f;
    float sine = a * (1.0f - square * (1.0f / 6.0f - square * (1.0f / 120.0f - square * (1.0f / 5040.0f))));
    float cosine = 1.0f - square * (0.5f - square * (1.0f / 24.0f - square * (1.0f / 720.0f)));
    float pushed = (force + 0.05f * s[3] * s[3] * sine) / 1.1f;
    float turning = (9.8f * sine - cosine * pushed) / (0.5f * (4.0f / 3.0f - 0.1f * cosine * cosine / 1.1f));
    float moving = pushed - 0.05f * turning * cosine / 1.1f;
    s[0] += 0.02f * s[1];
    s[1] += 0.02f * moving;
    s[2] += 0.02f * s[3];
    s[3] += 0.02f * turning;
    *terminated = s[0] < -2.4f || s[0] > 2.4f || s[2] < -0.20943951f || s[2] > 0.20943951f;
    *truncated = ++cartpole->steps >= CARTPOLE_STEPS && !*terminated;
}

#endif
