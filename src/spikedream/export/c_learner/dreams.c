/* See dreams.h. */
#include "dreams.h"

#include "functions.h"
#include "network.h"

void dreams_experience(struct learner *learner, const float *observation, float reward, const float *next, int terminated)
{
    float share = 1.0f / learner->count;
    int i;
    for (i = 0; i < LEARNER_INPUTS; i++) {
        float change = next[i] - observation[i];
        learner->change[i] += share * (change * change - learner->change[i]);
        extend(&learner->low[i], &learner->high[i], observation[i]);
        learner->newest[i] = terminated ? observation[i] : next[i];
    }
    extend(&learner->reward_low, &learner->reward_high, reward);
}

int dreams_drawn_below(struct learner *learner, float size)
{
    int drawn = (int)(uniform(&learner->random) * size);
    return (float)drawn < size ? drawn : (int)size - 1;
}

void dreams_remember(struct learner *learner, const float *observation, int choice, float reward, const float *next)
{
    int i, place = learner->held < LEARNER_MEMORY ? learner->held++ : dreams_drawn_below(learner, learner->count);
    if (place >= LEARNER_MEMORY)
        return;
    for (i = 0; i < LEARNER_INPUTS; i++) {
        learner->past[place].observation[i] = observation[i];
        learner->past[place].next[i] = next[i];
    }
    learner->past[place].reward = reward;
    learner->past_choice[place] = (uint8_t)choice;
}

static float typical(const struct learner *learner, int i) /* change of the observation in a step, in its own units */
{
    float deviation = root(learner->variance[i]), unit = deviation > 1e-6f ? deviation : 1.0f, change = root(learner->change[i]);
    return change / unit > 1e-6f ? change : unit;
}

static float largest_reward(const struct learner *learner)
{
    float low = magnitude(learner->reward_low), high = magnitude(learner->reward_high), largest = low > high ? low : high;
    return largest > 1e-6f ? largest : 1.0f;
}

static void enter(const struct learner *learner, const float *observation, int choice, float *in) /* what the model sees */
{
    int i;
    for (i = 0; i < LEARNER_INPUTS; i++)
        in[i] = network_normalised(learner, observation, i);
    for (i = 0; i < LEARNER_CHOICES; i++)
        in[LEARNER_INPUTS + i] = i == choice ? 1.0f : 0.0f;
}

float dreams_fit(struct learner *learner, const float *observation, int choice, float reward, const float *next)
{
    float in[MODEL_INPUTS], wanted[MODEL_OUTPUTS];
    int i;
    enter(learner, observation, choice, in);
    for (i = 0; i < LEARNER_INPUTS; i++)
        wanted[i] = (next[i] - observation[i]) / typical(learner, i);
    wanted[LEARNER_INPUTS] = reward / largest_reward(learner);
    return model_fit(&learner->model, in, wanted);
}

void dreams_awake(struct learner *learner, int place)
{
    const float *start = place < 0 ? learner->newest : learner->past[place].observation;
    int i;
    if (learner->age < LEARNER_HORIZON)
        return;
    for (i = 0; i < LEARNER_INPUTS; i++)
        learner->dream[i] = start[i];
    learner->age = 0;
}

float dreams_imagine(struct learner *learner, int choice, int *ended)
{
    float in[MODEL_INPUTS], out[MODEL_OUTPUTS], largest = largest_reward(learner), reward;
    float least = learner->reward_low < 0.0f ? learner->reward_low : 0.0f, most = learner->reward_high > 0.0f ? learner->reward_high : 0.0f;
    int i;
    enter(learner, learner->dream, choice, in);
    model_predict(&learner->model, in, out);
    *ended = 0;
    for (i = 0; i < LEARNER_INPUTS; i++) {
        float slack = LEARNER_MARGIN * typical(learner, i);
        learner->dream[i] += out[i] * typical(learner, i);
        *ended |= learner->dream[i] < learner->low[i] - slack || learner->dream[i] > learner->high[i] + slack;
    }
    reward = largest * out[LEARNER_INPUTS];
    return reward < least ? least : reward > most ? most : reward;
}

void learner_rehearse_step(struct learner *learner, int place)
{
    const struct real *real = &learner->past[place];
    (void)dreams_fit(learner, real->observation, learner->past_choice[place], real->reward, real->next);
}

void learner_rehearse(struct learner *learner)
{
    learner_rehearse_step(learner, dreams_drawn_below(learner, (float)learner->held));
}

int learner_may_dream(const struct learner *learner)
{
    return learner->count >= LEARNER_BEGIN;
}
