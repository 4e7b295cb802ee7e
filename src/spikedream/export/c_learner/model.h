/* A small spiking model of the world that learns from each real step: what the observation changes by, in typical changes, and the
 * reward; a layer of leaky integrate-and-fire neurons, read from spikes and last membranes, gradients by real-time recurrent learning. */
#ifndef MODEL_H
#define MODEL_H

#include "settings.h"

#define MODEL_INPUTS (LEARNER_INPUTS + LEARNER_CHOICES)
#define MODEL_OUTPUTS (LEARNER_INPUTS + 1)

/* Where its parameters begin. */
#define MODEL_WEIGHT 0 /* (input, neuron) */
#define MODEL_BIAS (MODEL_WEIGHT + MODEL_INPUTS * MODEL_HIDDEN)
#define MODEL_DECAY (MODEL_BIAS + MODEL_HIDDEN) /* logits of the membranes' decays */
#define MODEL_CHARGE (MODEL_DECAY + MODEL_HIDDEN) /* (neuron, output), of spikes and residual membrane together */
#define MODEL_CHARGE_BIAS (MODEL_CHARGE + MODEL_HIDDEN * MODEL_OUTPUTS)
#define MODEL_SPIKES (MODEL_CHARGE_BIAS + MODEL_OUTPUTS) /* (neuron, output), of spikes alone */
#define MODEL_PARAMETERS (MODEL_SPIKES + MODEL_HIDDEN * MODEL_OUTPUTS)

struct model {
    float parameter[MODEL_PARAMETERS];
    float first[MODEL_PARAMETERS], second[MODEL_PARAMETERS]; /* moments of the gradient */
    float first_left, second_left; /* what is left in them of where they began */
};

void model_start(struct model *model);

void model_predict(const struct model *model, const float *in, float *out);

/* One gradient step; the mean square error before it. */
float model_fit(struct model *model, const float *in, const float *wanted);

#endif
