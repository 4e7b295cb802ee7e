/* See learner.h. */
#include "learner.h"

#include "functions.h"
#include "start.h"

#define NEURON_TICKS LEARNER_TICKS
#define NEURON_THRESHOLD LEARNER_THRESHOLD
#define NEURON_SOFT_RESET LEARNER_SOFT_RESET
#define NEURON_FOLLOWS_RESET LEARNER_FOLLOWS_RESET
#define NEURON_SURROGATE(x) LEARNER_SURROGATE(x)
#include "neuron.h"

#define FAINT -16.0f /* exponent below which a receptive field is taken for silent */
#define FADED 1e-3f  /* scale of traces at which they are brought back to 1: numbers that cancel must not grow large */

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

static struct network of_past(struct network network, int dreamed)
{
#if LEARNER_DREAMS
    if (dreamed) {
        float *trace = network.trace;
        struct memory *memory = network.memory;
        network.trace = network.other;
        network.memory = network.other_memory;
        network.other = trace;
        network.other_memory = memory;
    }
#else
    (void)dreamed;
#endif
    return network;
}

static struct network actor_of(struct learner *learner, int dreamed)
{
    struct network network = {learner->actor, learner->actor_trace, &learner->actor_memory, LEARNER_CHOICES, ACTOR_PARAMETERS
#if LEARNER_DREAMS
                              , learner->actor_dreamed, &learner->actor_dreamed_memory
#endif
    };
    return of_past(network, dreamed);
}

static struct network critic_of(struct learner *learner, int dreamed)
{
    struct network network = {learner->critic, learner->critic_trace, &learner->critic_memory, 1, CRITIC_PARAMETERS
#if LEARNER_DREAMS
                              , learner->critic_dreamed, &learner->critic_dreamed_memory
#endif
    };
    return of_past(network, dreamed);
}

static inline float parameter(const struct network *network, int i)
{
#if LEARNER_DREAMS
    return network->base[i] + network->memory->push * network->trace[i] + network->other_memory->push * network->other[i];
#else
    return network->base[i] + network->memory->push * network->trace[i];
#endif
}

static float normalised(const struct learner *learner, const float *observation, int i)
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
        float x = learner->input[i] = normalised(learner, observation, i);
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

/* Outputs for an observation; what the gradient needs stays in `learner`. */
static void forward(struct learner *learner, const struct network *network, const float *observation)
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

static void add_return(struct learner *learner, float reward, int goes_on) /* the discounted sum of rewards (Welford 1962) */
{
    float delta;
    learner->running = (goes_on ? LEARNER_GAMMA * learner->running : 0.0f) + reward;
    learner->return_count += 1.0f;
    delta = learner->running - learner->return_mean;
    learner->return_mean += delta / learner->return_count;
    learner->return_squares += delta * (learner->running - learner->return_mean);
}

static float return_scale(const struct learner *learner) /* its deviation */
{
    float variance = learner->return_count > 1.0f ? learner->return_squares / (learner->return_count - 1.0f) : 0.0f;
    return variance > 1e-8f ? root(variance) : 1.0f;
}

#if LEARNER_DREAMS
/* ---- a model, and dreams in it (Sutton 1990, Dyna) */

static void experience(struct learner *learner, const float *observation, float reward, const float *next, int terminated)
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

static int drawn_below(struct learner *learner, float size)
{
    int drawn = (int)(uniform(&learner->random) * size);
    return (float)drawn < size ? drawn : (int)size - 1;
}

static void remember(struct learner *learner, const float *observation, int choice, float reward, const float *next) /* Vitter 1985, R */
{
    int i, place = learner->held < LEARNER_MEMORY ? learner->held++ : drawn_below(learner, learner->count);
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
        in[i] = normalised(learner, observation, i);
    for (i = 0; i < LEARNER_CHOICES; i++)
        in[LEARNER_INPUTS + i] = i == choice ? 1.0f : 0.0f;
}

static float fit(struct learner *learner, const float *observation, int choice, float reward, const float *next) /* the error */
{
    float in[MODEL_INPUTS], wanted[MODEL_OUTPUTS];
    int i;
    enter(learner, observation, choice, in);
    for (i = 0; i < LEARNER_INPUTS; i++)
        wanted[i] = (next[i] - observation[i]) / typical(learner, i);
    wanted[LEARNER_INPUTS] = reward / largest_reward(learner);
    return model_fit(&learner->model, in, wanted);
}

/* Where the dream goes on: where it was, or at the newest state that did not end the task, or at the remembered one of this place. */
static void awake(struct learner *learner, int place)
{
    const float *start = place < 0 ? learner->newest : learner->past[place].observation;
    int i;
    if (learner->age < LEARNER_HORIZON)
        return;
    for (i = 0; i < LEARNER_INPUTS; i++)
        learner->dream[i] = start[i];
    learner->age = 0;
}

/* Moves the dream on by a step. It ends where it leaves the range of those observations in which real episodes went on. Returns the
 * reward. */
static float imagine(struct learner *learner, int choice, int *ended)
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
#endif

#if LEARNER_AVERAGES
static void follow(struct learner *learner) /* the actor, by its average (Shamir & Zhang 2013) */
{
    struct network actor = actor_of(learner, 0);
    float share = (LEARNER_AVERAGE_DEGREE + 1.0f) / (learner->count + LEARNER_AVERAGE_DEGREE);
    int i;
    for (i = 0; i < ACTOR_PARAMETERS; i++)
        learner->average[i] += share * (parameter(&actor, i) - learner->average[i]);
}

static struct network average_of(struct learner *learner)
{
    static struct memory still = {1, 0, 0}; /* moved by no trace */
    struct network network = {learner->average, learner->average, &still, LEARNER_CHOICES, ACTOR_PARAMETERS
#if LEARNER_DREAMS
                              , learner->average, &still
#endif
    };
    return network;
}
#endif

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
    struct network actor = actor_of(learner, 0);
    int k, choice = 0;
#if LEARNER_AVERAGES
    if (greedy)
        actor = average_of(learner);
#endif
    forward(learner, &actor, observation);
    if (greedy) {
        for (k = 1; k < LEARNER_CHOICES; k++)
            if (learner->output[k] > learner->output[choice])
                choice = k;
        return choice;
    }
    (void)policy(learner, probability, log_probability);
    drawn = uniform(&learner->random);
    while (choice < LEARNER_CHOICES - 1 && drawn >= probability[choice])
        drawn -= probability[choice++];
    return choice;
}

/* From a step of the past that is `dreamed` or not; the reward is scaled, and the next step to be learned from follows where it
 * `goes_on`. */
static void learn_from(struct learner *learner, int dreamed, const float *observation, int choice, float reward, const float *next,
                       int terminated, int goes_on)
{
    float probability[LEARNER_CHOICES], log_probability[LEARNER_CHOICES], pull[LEARNER_CHOICES], one = 1.0f, after = 0, entropy;
    struct network actor = actor_of(learner, dreamed), critic = critic_of(learner, dreamed);
    int k;
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

void learner_learn(struct learner *learner, const float *observation, int choice, float reward, const float *next, int terminated,
                   int truncated)
{
    int goes_on = !terminated && !truncated;
    observe(learner, observation);
#if LEARNER_DREAMS
    experience(learner, observation, reward, next, terminated);
#endif
    add_return(learner, reward, goes_on);
    learn_from(learner, 0, observation, choice, reward / return_scale(learner), next, terminated, goes_on);
#if LEARNER_AVERAGES
    follow(learner);
#endif
#if LEARNER_DREAMS
    learner->model_error = fit(learner, observation, choice, reward, next);
    remember(learner, observation, choice, reward, next);
#endif
}

#if LEARNER_DREAMS
void learner_rehearse_step(struct learner *learner, int place)
{
    const struct real *real = &learner->past[place];
    (void)fit(learner, real->observation, learner->past_choice[place], real->reward, real->next);
}

void learner_rehearse(struct learner *learner)
{
    learner_rehearse_step(learner, drawn_below(learner, (float)learner->held));
}

int learner_may_dream(const struct learner *learner)
{
    return learner->count >= LEARNER_BEGIN;
}

void learner_imagine(struct learner *learner, int place, int choice)
{
    float before[LEARNER_INPUTS], reward;
    int i, ended;
    awake(learner, place);
    for (i = 0; i < LEARNER_INPUTS; i++)
        before[i] = learner->dream[i];
    reward = imagine(learner, choice, &ended);
    learner->age = ended ? LEARNER_HORIZON : learner->age + 1;
    learn_from(learner, 1, before, choice, reward / return_scale(learner), learner->dream, ended, learner->age < LEARNER_HORIZON);
}

void learner_dream(struct learner *learner)
{
    int place = -1;
    if (learner->age >= LEARNER_HORIZON && learner->held && uniform(&learner->random) < LEARNER_BEGIN_REMEMBERED)
        place = drawn_below(learner, (float)learner->held);
    awake(learner, place);
    learner_imagine(learner, place, learner_act(learner, learner->dream, 0));
}
#endif

void learner_start(struct learner *learner, uint32_t seed)
{
    int i;
    for (i = 0; i < ACTOR_PARAMETERS; i++) {
        learner->actor[i] = start_actor[i];
        learner->actor_trace[i] = 0;
#if LEARNER_DREAMS
        learner->actor_dreamed[i] = 0;
#endif
    }
    for (i = 0; i < CRITIC_PARAMETERS; i++) {
        learner->critic[i] = start_critic[i];
        learner->critic_trace[i] = 0;
#if LEARNER_DREAMS
        learner->critic_dreamed[i] = 0;
#endif
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
#if LEARNER_AVERAGES
    for (i = 0; i < ACTOR_PARAMETERS; i++)
        learner->average[i] = start_average[i];
#endif
#if LEARNER_DREAMS
    learner->actor_dreamed_memory = learner->actor_memory;
    learner->critic_dreamed_memory = learner->critic_memory;
    for (i = 0; i < LEARNER_INPUTS; i++) {
        learner->change[i] = start_change[i];
        learner->low[i] = start_low[i];
        learner->high[i] = start_high[i];
        learner->newest[i] = learner->dream[i] = 0;
    }
    learner->reward_low = START_REWARD_LOW;
    learner->reward_high = START_REWARD_HIGH;
    learner->age = LEARNER_HORIZON;
    learner->held = 0;
    model_start(&learner->model);
#endif
}

void learner_settle(struct learner *learner)
{
    int dreamed;
    for (dreamed = 0; dreamed <= (LEARNER_DREAMS > 0); dreamed++) {
        struct network actor = actor_of(learner, dreamed), critic = critic_of(learner, dreamed);
        settle(&actor, 1);
        settle(&critic, 1);
    }
}
