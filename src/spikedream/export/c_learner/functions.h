/* What learning computes with beside arithmetic.h: the same bits on every machine. */
#ifndef FUNCTIONS_H
#define FUNCTIONS_H

#include <stdint.h>

typedef uint16_t place, target; /* of tables of sparse weights, of which there are none here */
#include "arithmetic.h"

static inline float uniform(uint32_t *random) /* in [0, 1): xorshift (Marsaglia 2003) */
{
    *random ^= *random << 13;
    *random ^= *random >> 17;
    *random ^= *random << 5;
    return (float)(*random >> 8) * (1.0f / 16777216.0f);
}

static inline float logarithm(float x) /* of x > 0: 2 artanh of (m - 1) / (m + 1), m in [0.7, 1.4), and the exponent */
{
    union { float value; uint32_t bits; } split;
    float z, square;
    int exponent;
    split.value = x;
    exponent = (int)(split.bits >> 23) - 127;
    split.bits = (split.bits & 0x7fffffu) | 0x3f800000u;
    if (split.value > 1.4142135f) {
        split.value *= 0.5f;
        exponent++;
    }
    z = (split.value - 1.0f) / (split.value + 1.0f);
    square = z * z;
    return (float)exponent * 0.6931472f +
           2.0f * z * (1.0f + square * (1.0f / 3.0f + square * (1.0f / 5.0f + square * (1.0f / 7.0f + square * (1.0f / 9.0f)))));
}

static inline float root(float x) /* of x >= 0: four of Heron's steps from half the exponent */
{
    union { float value; uint32_t bits; } guess;
    int i;
    if (x <= 0.0f)
        return 0.0f;
    guess.value = x;
    guess.bits = (guess.bits >> 1) + 0x1fc00000u;
    for (i = 0; i < 4; i++)
        guess.value = 0.5f * (guess.value + x / guess.value);
    return guess.value;
}

static inline float logistic(float x)
{
    float e = exponential(-magnitude(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

static inline void extend(float *low, float *high, float x) /* the range from `low` to `high`, to `x` */
{
    *low = x < *low ? x : *low;
    *high = x > *high ? x : *high;
}

#endif
