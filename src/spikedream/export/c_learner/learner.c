/* See learner.h. */
#include "learner.h"

typedef uint16_t place, target; /* of tables of sparse weights, of which there are none here */
#include "arithmetic.h"
#include "start.h"

#define FAINT -16.0f /* exponent below which a receptive field is taken for silent */
#define FADED 1e-3f  /* scale of traces at which they are brought back to 1: numbers that cancel must not grow large */

/* A network while it is used. */
struct network {
    float *base, *trace;
    struct memory *memory;
    int outputs, size;
};

static struct network actor_of(struct learner *learner)
{
    struct network network = {learner->actor, learner->actor_trace, &learner->actor_memory, LEARNER_CHOICES, ACTOR_PARAMETERS};
    return network;
}

static struct network critic_of(struct learner *learner)
{
    struct network network = {learner->critic, learner->critic_trace, &learner->critic_memory, 1, CRITIC_PARAMETERS};
    return network;
}

static inline float parameter(const struct network *network, int i)
{
    return network->base[i] + network->memory->push * network->trace[i];
}

static float uniform(struct learner *learner) /* in [0, 1): xorshift (Marsaglia 2003) */
{
    learner->random ^= learner->random << 13;
    learner->random ^= learner->random >> 17;
    learner->random ^= learner->random << 5;
    return (float)(learner->random >> 8) * (1.0f / 16777216.0f);
}

static float logarithm(float x) /* of x > 0: 2 artanh of (m - 1) / (m + 1), m in [0.7, 1.4), and the exponent */
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

static float root(float x) /* of x >= 0: four of Heron's steps from half the exponent */
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

static float logistic(float x)
{
    float e = exponential(-magnitude(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

static float normalised(const struct learner *learner, const float *observation, int i)
{
    float deviation = root(learner->variance[i]);
    return (observation[i] - learner->mean[i]) / (deviation > 1e-6f ? deviation : 1.0f);
}

static float narrowness(const struct network *network, int c) /* one over a receptive field's standard deviation */
{
    float width = parameter(network, WIDTH + c);
    return width > 0.0f ? exponential(-width) : 1.0f / exponential(width);
}

static void encode(struct learner *learner, const struct network *network, const float *observation)
{
    int i, k, c = 0;
    for (i = 0; i < LEARNER_INPUTS; i++) {
        float x = learner->input[i] = normalised(learner, observation, i);
        for (k = 0; k < LEARNER_FIELDS; k++, c++) {
#if LEARNER_FIELDS > 1
            float z = (x - parameter(network, MEAN + c)) * narrowness(network, c);
            float q = -0.5f * (z * z);
            learner->channel[c] = q < FAINT ? 0.0f : exponential(q);
#else
            learner->channel[c] = x;
#endif
        }
    }
}

/* The layer's ticks under constant currents from rest, and with them what each neuron's spike count changes by with its current and
 * with the logit of its decay: the current is the same at every tick and the state is fresh, so that one number a neuron is the whole
 * influence of all that feeds its current. */
static void fire(struct learner *learner, const struct network *network, const float *current)
{
    int j, tick;
    learner->spikes = 0;
    for (j = 0; j < LEARNER_HIDDEN; j++) {
        float b = logistic(parameter(network, DECAY + j)), slope = b * (1.0f - b), v = 0, v_current = 0, v_decay = 0;
        float fired_current = 0, fired_decay = 0;
        int count = 0;
        for (tick = 0; tick < LEARNER_TICKS; tick++) {
            float u = b * v + current[j], u_current = b * v_current + 1.0f, u_decay = b * v_decay + slope * v;
            float excess = u - LEARNER_THRESHOLD, bump = LEARNER_SURROGATE(excess);
            int spike = excess >= 0.0f;
            count += spike;
            fired_current += bump * u_current;
            fired_decay += bump * u_decay;
#if LEARNER_SOFT_RESET
            v = spike ? excess : u;
            v_current = u_current;
            v_decay = u_decay;
#else
            v = spike ? 0.0f : u;
            v_current = spike ? 0.0f : u_current;
            v_decay = spike ? 0.0f : u_decay;
#endif
#if LEARNER_FOLLOWS_RESET
            v_current -= (LEARNER_SOFT_RESET ? LEARNER_THRESHOLD : u) * (bump * u_current);
            v_decay -= (LEARNER_SOFT_RESET ? LEARNER_THRESHOLD : u) * (bump * u_decay);
#endif
        }
        learner->spikes += (uint32_t)count;
        learner->rate[j] = (float)count / LEARNER_TICKS;
        learner->by_current[j] = fired_current / LEARNER_TICKS;
        learner->by_decay[j] = fired_decay / LEARNER_TICKS;
    }
}

/* Outputs for an observation; what the gradient needs stays in `learner`. */
static void forward(struct learner *learner, const struct network *network, const float *observation)
{
    float current[LEARNER_HIDDEN], push = network->memory->push;
    int c, j, k, outputs = network->outputs;
    encode(learner, network, observation);
    for (j = 0; j < LEARNER_HIDDEN; j++)
        current[j] = parameter(network, BIAS + j);
    for (c = 0; c < CHANNELS; c++) {
        const float *base = network->base + WEIGHT + c * LEARNER_HIDDEN, *trace = network->trace + WEIGHT + c * LEARNER_HIDDEN;
        float x = learner->channel[c];
        if (x != 0.0f)
            for (j = 0; j < LEARNER_HIDDEN; j++)
                current[j] += x * (base[j] + push * trace[j]);
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

/* Lets the traces decay, and adds to them the gradient of `pull` . outputs, after the last call of that network. */
static void recall(struct learner *learner, const struct network *network, const float *pull)
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

/* Parameters become their bases; the traces stay as they are meant, or become zero. */
static void settle(const struct network *network, int kept)
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

/* Overshooting-bounded gradient descent (Elsayed et al. 2024, algorithm 3). */
static void step(const struct network *network, float error, float rate, float caution, int goes_on)
{
    struct memory *memory = network->memory;
    float most = magnitude(error) > 1.0f ? magnitude(error) : 1.0f, bound = rate * caution * most * memory->scale * memory->length;
    memory->push += error * (rate / (bound > 1.0f ? bound : 1.0f)) * memory->scale;
    if (!goes_on || memory->scale < FADED)
        settle(network, goes_on);
}

static void observe(struct learner *learner, const float *observation) /* Chan et al. 1979, of one more row */
{
    float share;
    int i;
    learner->count += 1.0f;
    share = 1.0f / learner->count;
    for (i = 0; i < LEARNER_INPUTS; i++) {
        float delta = observation[i] - learner->mean[i];
        learner->mean[i] += share * delta;
        learner->variance[i] += share * ((1.0f - share) * delta * delta - learner->variance[i]);
    }
}

static float scaled(struct learner *learner, float reward, int goes_on) /* by the deviation of the discounted return (Welford 1962) */
{
    float delta, variance;
    learner->running = (goes_on ? LEARNER_GAMMA * learner->running : 0.0f) + reward;
    learner->return_count += 1.0f;
    delta = learner->running - learner->return_mean;
    learner->return_mean += delta / learner->return_count;
    learner->return_squares += delta * (learner->running - learner->return_mean);
    variance = learner->return_count > 1.0f ? learner->return_squares / (learner->return_count - 1.0f) : 0.0f;
    return variance > 1e-8f ? reward / root(variance) : reward;
}

/* Probabilities of the choices, and the logarithm of each, from the last call of the actor; its entropy. */
static float policy(const struct learner *learner, float *probability, float *log_probability)
{
    float largest = learner->output[0], sum = 0, entropy = 0;
    int k;
    for (k = 1; k < LEARNER_CHOICES; k++)
        if (learner->output[k] > largest)
            largest = learner->output[k];
    for (k = 0; k < LEARNER_CHOICES; k++)
        sum += probability[k] = exponential(learner->output[k] - largest);
    for (k = 0; k < LEARNER_CHOICES; k++) {
        log_probability[k] = learner->output[k] - largest - logarithm(sum);
        probability[k] /= sum;
        entropy -= probability[k] * log_probability[k];
    }
    return entropy;
}

int learner_act(struct learner *learner, const float *observation, int greedy)
{
    float probability[LEARNER_CHOICES], log_probability[LEARNER_CHOICES], drawn;
    struct network actor = actor_of(learner);
    int k, choice = 0;
    forward(learner, &actor, observation);
    if (greedy) {
        for (k = 1; k < LEARNER_CHOICES; k++)
            if (learner->output[k] > learner->output[choice])
                choice = k;
        return choice;
    }
    (void)policy(learner, probability, log_probability);
    drawn = uniform(learner);
    while (choice < LEARNER_CHOICES - 1 && drawn >= probability[choice])
        drawn -= probability[choice++];
    return choice;
}

void learner_learn(struct learner *learner, const float *observation, int choice, float reward, const float *next, int terminated,
                   int truncated)
{
    float probability[LEARNER_CHOICES], log_probability[LEARNER_CHOICES], pull[LEARNER_CHOICES], one = 1.0f, after = 0, entropy;
    struct network actor = actor_of(learner), critic = critic_of(learner);
    int k, goes_on = !terminated && !truncated;
    observe(learner, observation);
    reward = scaled(learner, reward, goes_on);
    if (!terminated) {
        forward(learner, &critic, next);
        after = learner->output[0];
    }
    forward(learner, &critic, observation);
    learner->value = learner->output[0];
    learner->error = reward + LEARNER_GAMMA * after - learner->value;
    recall(learner, &critic, &one);
    step(&critic, learner->error, LEARNER_CRITIC_STEP_SIZE, LEARNER_CRITIC_CAUTION, goes_on);
    forward(learner, &actor, observation);
    entropy = policy(learner, probability, log_probability);
    for (k = 0; k < LEARNER_CHOICES; k++) {
        float spread = -probability[k] * (log_probability[k] + entropy);
        float favour = learner->error > 0.0f ? LEARNER_ENTROPY : learner->error < 0.0f ? -LEARNER_ENTROPY : 0.0f;
        pull[k] = (k == choice ? 1.0f : 0.0f) - probability[k] + favour * spread;
    }
    recall(learner, &actor, pull);
    step(&actor, learner->error, LEARNER_STEP_SIZE, LEARNER_CAUTION, goes_on);
}

void learner_start(struct learner *learner, uint32_t seed)
{
    int i;
    for (i = 0; i < ACTOR_PARAMETERS; i++) {
        learner->actor[i] = start_actor[i];
        learner->actor_trace[i] = 0;
    }
    for (i = 0; i < CRITIC_PARAMETERS; i++) {
        learner->critic[i] = start_critic[i];
        learner->critic_trace[i] = 0;
    }
    learner->actor_memory.scale = learner->critic_memory.scale = 1;
    learner->actor_memory.push = learner->critic_memory.push = 0;
    learner->actor_memory.length = learner->critic_memory.length = 0;
    learner->count = START_COUNT;
    for (i = 0; i < LEARNER_INPUTS; i++) {
        learner->mean[i] = start_mean[i];
        learner->variance[i] = start_variance[i];
    }
    learner->running = 0;
    learner->return_count = START_RETURN_COUNT;
    learner->return_mean = START_RETURN_MEAN;
    learner->return_squares = START_RETURN_SQUARES;
    learner->random = seed;
}

void learner_settle(struct learner *learner)
{
    struct network actor = actor_of(learner), critic = critic_of(learner);
    settle(&actor, 1);
    settle(&critic, 1);
}
