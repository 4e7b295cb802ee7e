/* Actor and critic alike: a layer of leaky integrate-and-fire neurons behind receptive fields, how it learns and how far it moves. */
#ifndef NETWORK_H
#define NETWORK_H

#include "learner.h"

/* A network while it is used, and the past that it learns from: what happened, or what was dreamed. */
struct network {
    float *base, *trace;
    struct memory *memory;
    int outputs, size;
#if LEARNER_DREAMS
    float *other;              /* traces of the other past */
    struct memory *other_memory;
#endif
};

static inline float parameter(const struct network *network, int i)
{
#if LEARNER_DREAMS
    return network->base[i] + network->memory->push * network->trace[i] + network->other_memory->push * network->other[i];
#else
    return network->base[i] + network->memory->push * network->trace[i];
#endif
}

/* The observation's i-th number, by its running moments. */
float network_normalised(const struct learner *learner, const float *observation, int i);

/* Outputs for an observation; what the gradient needs stays in `learner`. */
void network_forward(struct learner *learner, const struct network *network, const float *observation);

/* Lets the traces decay, and adds to them the gradient of `pull` . outputs, after the last call of that network. */
void network_recall(struct learner *learner, const struct network *network, const float *pull);

/* Parameters become their bases; the traces stay as they are meant, or become zero. */
void network_settle(const struct network *network, int kept);

/* Overshooting-bounded gradient descent (Elsayed et al. 2024, algorithm 3). */
void network_step(const struct network *network, float error, float rate, float caution, int goes_on);

#endif
