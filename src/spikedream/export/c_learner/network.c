/* See network.h. */
#include "network.h"

#include "functions.h"

#define NEURON_TICKS LEARNER_TICKS
#define NEURON_THRESHOLD LEARNER_THRESHOLD
#define NEURON_SOFT_RESET LEARNER_SOFT_RESET
#define NEURON_FOLLOWS_RESET LEARNER_FOLLOWS_RESET
#define NEURON_SURROGATE(x) LEARNER_SURROGATE(x)
#include "neuron.h"

#define FAINT -16.0f /* exponent below which a receptive field is taken for silent */
#define FADED 1e-3f  /* scale of traces at which they are brought back to 1: numbers that cancel must not grow large */

float network_normalised(const struct learner *learner, const float *observation, int i)
{
    float deviation = root(learner->variance[i]);
    return (observation[i] - learner->mean[i]) / (deviation > 1e-6f ? deviation : 1.0f);
}

#if LEARNER_FIELDS > 1
static float narrowness(const struct network *network, int c) /* one over a receptive field's standard deviation */
{
    float width = parameter(network, WIDTH + c);
    return width > 0.0f ? exponential(-width) : 1.0f / exponential(width);
}
#endif

static void encode(struct learner *learner, const struct network *network, const float *observation)
{
    int i, k, c = 0;
    for (i = 0; i < LEARNER_INPUTS; i++) {
        float x = learner->input[i] = network_normalised(learner, observation, i);
        for (k = 0; k < LEARNER_FIELDS; k++, c++) {
#if LEARNER_FIELDS > 1
            float z = (x - parameter(network, MEAN + c)) * narrowness(network, c);
            float q = -0.5f * (z * z);
            learner->channel[c] = q < FAINT ? 0.0f : exponential(q);
#else
            (void)network;
            learner->channel[c] = x;
#endif
        }
    }
}

static void fire(struct learner *learner, const struct network *network, const float *current)
{
    int j;
    learner->spikes = 0;
    for (j = 0; j < LEARNER_HIDDEN; j++) {
        struct window window = neuron(logistic(parameter(network, DECAY + j)), current[j]);
        learner->spikes += (uint32_t)window.spikes;
        learner->rate[j] = (float)window.spikes / LEARNER_TICKS;
        learner->by_current[j] = window.spikes_current / LEARNER_TICKS;
        learner->by_decay[j] = window.spikes_decay / LEARNER_TICKS;
    }
}

void network_forward(struct learner *learner, const struct network *network, const float *observation)
{
    float current[LEARNER_HIDDEN];
    int c, j, k, outputs = network->outputs;
    encode(learner, network, observation);
    for (j = 0; j < LEARNER_HIDDEN; j++)
        current[j] = parameter(network, BIAS + j);
    for (c = 0; c < CHANNELS; c++) {
        float x = learner->channel[c];
        if (x != 0.0f)
            for (j = 0; j < LEARNER_HIDDEN; j++)
                current[j] += x * parameter(network, WEIGHT + c * LEARNER_HIDDEN + j);
    }
    fire(learner, network, current);
    for (k = 0; k < outputs; k++)
        learner->output[k] = parameter(network, OUT_BIAS(outputs) + k);
    for (j = 0; j < LEARNER_HIDDEN; j++)
        if (learner->rate[j] != 0.0f)
            for (k = 0; k < outputs; k++)
                learner->output[k] += learner->rate[j] * parameter(network, OUT + j * outputs + k);
}

/* Adds to a trace, and leaves its parameter where it is; what the sum of magnitudes changes by. */
static inline float add(float *base, float *trace, float change, float push)
{
    float before = *trace, after = before + change;
    *trace = after;
    *base -= push * change;
    return magnitude(after) - magnitude(before);
}

void network_recall(struct learner *learner, const struct network *network, const float *pull)
{
    float by_current[LEARNER_HIDDEN], push = network->memory->push, raised, length = 0;
    float *base = network->base, *trace = network->trace;
    int c, j, k, n, active[LEARNER_HIDDEN], count = 0, outputs = network->outputs;
    network->memory->scale *= LEARNER_GAMMA * LEARNER_TRACE_DECAY;
    raised = 1.0f / network->memory->scale;
    for (j = 0; j < LEARNER_HIDDEN; j++) {
        float pulled = 0;
        for (k = 0; k < outputs; k++) {
            int i = OUT + j * outputs + k;
            pulled += pull[k] * parameter(network, i);
            if (learner->rate[j] != 0.0f)
                length += add(base + i, trace + i, raised * pull[k] * learner->rate[j], push);
        }
        by_current[j] = pulled * learner->by_current[j];
        if (by_current[j] != 0.0f) {
            active[count++] = j;
            length += add(base + BIAS + j, trace + BIAS + j, raised * by_current[j], push);
        }
        length += add(base + DECAY + j, trace + DECAY + j, raised * LEARNER_LEARNS_DECAY * pulled * learner->by_decay[j], push);
    }
    for (k = 0; k < outputs; k++)
        length += add(base + OUT_BIAS(outputs) + k, trace + OUT_BIAS(outputs) + k, raised * pull[k], push);
    for (c = 0; c < CHANNELS; c++) {
        float x = learner->channel[c], pulled = 0;
        if (x == 0.0f)
            continue;
        for (n = 0; n < count; n++) {
            int i = WEIGHT + c * LEARNER_HIDDEN + active[n];
            pulled += by_current[active[n]] * parameter(network, i);
            length += add(base + i, trace + i, raised * x * by_current[active[n]], push);
        }
#if LEARNER_FIELDS > 1
        {
            float narrow = narrowness(network, c), z = (learner->input[c / LEARNER_FIELDS] - parameter(network, MEAN + c)) * narrow;
            length += add(base + MEAN + c, trace + MEAN + c, raised * pulled * x * z * narrow, push);
            length += add(base + WIDTH + c, trace + WIDTH + c, raised * pulled * x * z * z, push);
        }
#endif
    }
    network->memory->length += length;
}

void network_settle(const struct network *network, int kept)
{
    struct memory *memory = network->memory;
    int i;
    memory->length = 0;
    for (i = 0; i < network->size; i++) {
        network->base[i] += memory->push * network->trace[i];
        network->trace[i] = kept ? memory->scale * network->trace[i] : 0.0f;
        memory->length += magnitude(network->trace[i]);
    }
    memory->push = 0;
    memory->scale = 1;
}

void network_step(const struct network *network, float error, float rate, float caution, int goes_on)
{
    struct memory *memory = network->memory;
    float most = magnitude(error) > 1.0f ? magnitude(error) : 1.0f, bound = rate * caution * most * memory->scale * memory->length;
    memory->push += error * (rate / (bound > 1.0f ? bound : 1.0f)) * memory->scale;
    if (!goes_on || memory->scale < FADED)
        network_settle(network, goes_on);
}
