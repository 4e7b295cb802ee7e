/* What spiking and conventional actors compute with: no allocation, no library, the same bits wherever floats follow IEEE 754 and
 * a product and a sum are rounded one by one (-ffp-contract=off). */
#ifndef ARITHMETIC_H
#define ARITHMETIC_H

#include <stdint.h>

/* e^x for x <= 0: the Taylor series about the nearest multiple of ln 2, which is subtracted in two parts; then times a power of 2. */
static inline float exponential(float x)
{
    union { uint32_t bits; float value; } power;
    float r, series;
    int n;
    if (x < -87.0f)
        x = -87.0f;
    n = (int)(x * 1.4426950f - 0.5f);
    r = (x - (float)n * 0.69335938f) + (float)n * 2.1219444e-4f;
    series = 1.0f / 5040.0f;
    series = series * r + 1.0f / 720.0f;
    series = series * r + 1.0f / 120.0f;
    series = series * r + 1.0f / 24.0f;
    series = series * r + 1.0f / 6.0f;
    series = series * r + 1.0f / 2.0f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    power.bits = (uint32_t)(n + 127) << 23;
    return series * power.value;
}

static inline float magnitude(float x)
{
    return x < 0.0f ? -x : x;
}

static inline float tangent(float x) /* hyperbolic */
{
    float e = exponential(-2.0f * magnitude(x)), t = (1.0f - e) / (1.0f + e);
    return x < 0.0f ? -t : t;
}

static inline float silu(float x)
{
    float e = exponential(-magnitude(x));
    return x * (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

static inline float relu(float x)
{
    return x > 0.0f ? x : 0.0f;
}

static inline float elu(float x)
{
    return x > 0.0f ? x : exponential(x) - 1.0f;
}

/* sum[j] = the sum of weight[event][j] over the events, in their order. Eight columns at a time stay in registers. */
static inline void accumulate(const float *weight, int columns, const uint16_t *event, int events, float *sum)
{
    int j = 0, k;
    for (; j + 8 <= columns; j += 8, sum += 8) {
        float a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
        for (k = 0; k < events; k++) {
            const float *row = weight + (int32_t)event[k] * columns + j;
            a += row[0];
            b += row[1];
            c += row[2];
            d += row[3];
            e += row[4];
            f += row[5];
            g += row[6];
            h += row[7];
        }
        sum[0] = a;
        sum[1] = b;
        sum[2] = c;
        sum[3] = d;
        sum[4] = e;
        sum[5] = f;
        sum[6] = g;
        sum[7] = h;
    }
    for (; j < columns; j++, sum++) {
        float a = 0;
        for (k = 0; k < events; k++)
            a += weight[(int32_t)event[k] * columns + j];
        sum[0] = a;
    }
}

/* out = in weight + bias, row by row. */
static inline void dense(const float *weight, int columns, const float *bias, const float *in, int rows, float *out)
{
    int i, j;
    for (j = 0; j < columns; j++) {
        float sum = 0;
        for (i = 0; i < rows; i++)
            sum += in[i] * weight[i * columns + j];
        out[j] = sum + bias[j];
    }
}

/* The same, of the weights that there are: those of a row from begins[row] on, each with the column that it leads to. */
static inline void accumulate_sparse(const place *begins, const target *column, const float *weight, int columns,
                                     const uint16_t *event, int events, float *sum)
{
    int j, k;
    for (j = 0; j < columns; j++)
        sum[j] = 0;
    for (k = 0; k < events; k++)
        for (j = (int)begins[event[k]]; j < (int)begins[event[k] + 1]; j++)
            sum[column[j]] += weight[j];
}

static inline void dense_sparse(const place *begins, const target *column, const float *weight, int columns, const float *bias,
                                const float *in, int rows, float *out)
{
    int i, j;
    for (j = 0; j < columns; j++)
        out[j] = 0;
    for (i = 0; i < rows; i++)
        for (j = (int)begins[i]; j < (int)begins[i + 1]; j++)
            out[column[j]] += in[i] * weight[j];
    for (j = 0; j < columns; j++)
        out[j] += bias[j];
}

/* ---- Fixed point. Right shifts of negative numbers must round down, as those of all usual compilers do. */

static inline int32_t leaked(int32_t v, int32_t parts) /* of 256, that are lost */
{
    return v - ((v * parts) >> 8);
}

static inline int16_t saturated(int32_t v)
{
    return (int16_t)(v > 32767 ? 32767 : v < -32767 ? -32767 : v);
}

static inline int16_t whole(float x, int16_t limit) /* the nearest, upwards from the middle between two */
{
    int32_t n;
    x += 0.5f;
    if (x >= (float)limit)
        return limit;
    if (x <= (float)-limit)
        return (int16_t)-limit;
    n = (int32_t)x;
    return (int16_t)((float)n > x ? n - 1 : n);
}

static inline void accumulate_whole(const int8_t *weight, int columns, const uint16_t *event, int events, int32_t *sum)
{
    int j, k;
    for (j = 0; j < columns; j++)
        sum[j] = 0;
    for (k = 0; k < events; k++) {
        const int8_t *row = weight + (int32_t)event[k] * columns;
        for (j = 0; j < columns; j++)
            sum[j] += row[j];
    }
}

static inline void accumulate_whole_sparse(const place *begins, const target *column, const int8_t *weight, int columns,
                                           const uint16_t *event, int events, int32_t *sum)
{
    int j, k;
    for (j = 0; j < columns; j++)
        sum[j] = 0;
    for (k = 0; k < events; k++)
        for (j = (int)begins[event[k]]; j < (int)begins[event[k] + 1]; j++)
            sum[column[j]] += weight[j];
}

static inline void dense_whole(const int8_t *weight, int columns, const int16_t *bias, const int16_t *in, int rows, int32_t *out)
{
    int i, j;
    for (j = 0; j < columns; j++) {
        int32_t sum = bias[j];
        for (i = 0; i < rows; i++)
            sum += (int32_t)in[i] * weight[i * columns + j];
        out[j] = sum;
    }
}

static inline void dense_whole_sparse(const place *begins, const target *column, const int8_t *weight, int columns,
                                      const int16_t *bias, const int16_t *in, int rows, int32_t *out)
{
    int i, j;
    for (j = 0; j < columns; j++)
        out[j] = bias[j];
    for (i = 0; i < rows; i++)
        for (j = (int)begins[i]; j < (int)begins[i + 1]; j++)
            out[column[j]] += (int32_t)in[i] * weight[j];
}

#endif
