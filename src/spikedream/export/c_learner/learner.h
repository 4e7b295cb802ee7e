/* A streaming spiking actor-critic that learns from each step as it comes: Stream AC(lambda) (Elsayed et al. 2024) on a layer of
 * leaky integrate-and-fire neurons, gradients by real-time recurrent learning. No allocation, no library; nothing is stored of the
 * past but traces, and where it dreams a model, and a few steps that the model rehearses. */
#ifndef LEARNER_H
#define LEARNER_H

#include <stdint.h>

#include "settings.h"
#if LEARNER_DREAMS
#include "model.h"
#endif

/* Numbers that enter the layer: receptive fields, or the observation itself. */
#define CHANNELS (LEARNER_INPUTS * LEARNER_FIELDS)

/* Where the parameters of a network begin; a network of o outputs has OUT_BIAS(o) + o of them. */
#define MEAN 0                          /* of the receptive fields */
#define WIDTH (MEAN + CHANNELS)         /* their standard deviations' logarithms */
#define WEIGHT (WIDTH + CHANNELS)       /* (channel, neuron) */
#define BIAS (WEIGHT + CHANNELS * LEARNER_HIDDEN)
#define DECAY (BIAS + LEARNER_HIDDEN)   /* logits of the membranes' decays */
#define OUT (DECAY + LEARNER_HIDDEN)    /* (neuron, output) */
#define OUT_BIAS(outputs) (OUT + LEARNER_HIDDEN * (outputs))
#define ACTOR_PARAMETERS (OUT_BIAS(LEARNER_CHOICES) + LEARNER_CHOICES)
#define CRITIC_PARAMETERS (OUT_BIAS(1) + 1)

/* What a network has learned, and the traces of what it did lately. Both are held so that a step touches only what it changes: a
 * parameter is `base + push * trace`, and the trace that learning means is `scale * trace`. */
struct memory {
    float scale, push, length; /* the last: sum of the magnitudes of `trace` */
};

#if LEARNER_DREAMS
struct real { /* a step that is remembered */
    float observation[LEARNER_INPUTS], next[LEARNER_INPUTS], reward;
};
#endif

struct learner {
    struct memory actor_memory, critic_memory;
    float actor[ACTOR_PARAMETERS], actor_trace[ACTOR_PARAMETERS]; /* bases, and traces */
    float critic[CRITIC_PARAMETERS], critic_trace[CRITIC_PARAMETERS];
    /* Running moments of the observations, and of the discounted sum of rewards. */
    float count, mean[LEARNER_INPUTS], variance[LEARNER_INPUTS];
    float running, return_count, return_mean, return_squares;
    uint32_t random;
    /* What the last call left behind. */
    float input[LEARNER_INPUTS], channel[CHANNELS], rate[LEARNER_HIDDEN], by_current[LEARNER_HIDDEN], by_decay[LEARNER_HIDDEN];
    float output[LEARNER_CHOICES], error, value;
    uint32_t spikes; /* in the last call of a network */
#if LEARNER_AVERAGES
    float average[ACTOR_PARAMETERS]; /* of the actor's parameters as steps went by */
#endif
#if LEARNER_DREAMS
    struct memory actor_dreamed_memory, critic_dreamed_memory;
    float actor_dreamed[ACTOR_PARAMETERS], critic_dreamed[CRITIC_PARAMETERS]; /* traces of the dream under way */
    struct model model;
    float change[LEARNER_INPUTS];                     /* mean square of it in a step */
    float low[LEARNER_INPUTS], high[LEARNER_INPUTS]; /* the observations in which real episodes went on lie between these */
    float reward_low, reward_high;
    float newest[LEARNER_INPUTS], dream[LEARNER_INPUTS]; /* where reality and the dream stand */
    float model_error;
    int age; /* of the dream, in steps */
    struct real past[LEARNER_MEMORY]; /* of all steps, each equally often */
    uint8_t past_choice[LEARNER_MEMORY];
    int held;
#endif
};

/* As the exported run stood; `seed`, which is not 0, decides what is explored. */
void learner_start(struct learner *learner, uint32_t seed);

/* A choice for an observation, in the environment's own units: drawn from the policy, or the most probable one, of the average actor
 * where there is one. */
int learner_act(struct learner *learner, const float *observation, int greedy);

/* From one step. `terminated`: the task ended; `truncated`: only the episode did. */
void learner_learn(struct learner *learner, const float *observation, int choice, float reward, const float *next, int terminated,
                   int truncated);

#if LEARNER_DREAMS
/* Another gradient step of the model, on a real step that it remembers; the run that was exported made LEARNER_REHEARSALS after each. */
void learner_rehearse(struct learner *learner);

/* The same on the one at this place, of those from 0 to `held`. */
void learner_rehearse_step(struct learner *learner, int place);

/* Whether enough is known of the world to dream. */
int learner_may_dream(const struct learner *learner);

/* From one imagined step, as often as there is time for it; the run that was exported did so LEARNER_DREAMS times for each real one. */
void learner_dream(struct learner *learner);

/* The same with this choice; where a dream begins, it does so at the remembered step of this place, or at the newest state where
 * that is negative. */
void learner_imagine(struct learner *learner, int place, int choice);
#endif

/* Brings `actor` and `critic` up to what has been learned, to be read or kept. */
void learner_settle(struct learner *learner);

#endif
