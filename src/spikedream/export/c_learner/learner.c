/* See learner.h. */
#include "learner.h"

#if LEARNER_DREAMS
#include "dreams.h"
#endif
#include "functions.h"
#include "network.h"
#include "start.h"

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
    network_forward(learner, &actor, observation);
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
        network_forward(learner, &critic, next);
        after = learner->output[0];
    }
    network_forward(learner, &critic, observation);
    learner->value = learner->output[0];
    learner->error = reward + LEARNER_GAMMA * after - learner->value;
    network_recall(learner, &critic, &one);
    network_step(&critic, learner->error, LEARNER_CRITIC_STEP_SIZE, LEARNER_CRITIC_CAUTION, goes_on);
    network_forward(learner, &actor, observation);
    entropy = policy(learner, probability, log_probability);
    for (k = 0; k < LEARNER_CHOICES; k++) {
        float spread = -probability[k] * (log_probability[k] + entropy);
        float favour = learner->error > 0.0f ? LEARNER_ENTROPY : learner->error < 0.0f ? -LEARNER_ENTROPY : 0.0f;
        pull[k] = (k == choice ? 1.0f : 0.0f) - probability[k] + favour * spread;
    }
    network_recall(learner, &actor, pull);
    network_step(&actor, learner->error, LEARNER_STEP_SIZE, LEARNER_CAUTION, goes_on);
}

void learner_learn(struct learner *learner, const float *observation, int choice, float reward, const float *next, int terminated,
                   int truncated)
{
    int goes_on = !terminated && !truncated;
    observe(learner, observation);
#if LEARNER_DREAMS
    dreams_experience(learner, observation, reward, next, terminated);
#endif
    add_return(learner, reward, goes_on);
    learn_from(learner, 0, observation, choice, reward / return_scale(learner), next, terminated, goes_on);
#if LEARNER_AVERAGES
    follow(learner);
#endif
#if LEARNER_DREAMS
    learner->model_error = dreams_fit(learner, observation, choice, reward, next);
    dreams_remember(learner, observation, choice, reward, next);
#endif
}

#if LEARNER_DREAMS
void learner_imagine(struct learner *learner, int place, int choice)
{
    float before[LEARNER_INPUTS], reward;
    int i, ended;
    dreams_awake(learner, place);
    for (i = 0; i < LEARNER_INPUTS; i++)
        before[i] = learner->dream[i];
    reward = dreams_imagine(learner, choice, &ended);
    learner->age = ended ? LEARNER_HORIZON : learner->age + 1;
    learn_from(learner, 1, before, choice, reward / return_scale(learner), learner->dream, ended, learner->age < LEARNER_HORIZON);
}

void learner_dream(struct learner *learner)
{
    int place = -1;
    if (learner->age >= LEARNER_HORIZON && learner->held && uniform(&learner->random) < LEARNER_BEGIN_REMEMBERED)
        place = dreams_drawn_below(learner, (float)learner->held);
    dreams_awake(learner, place);
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
        network_settle(&actor, 1);
        network_settle(&critic, 1);
    }
}
