/* Learns CartPole-v1 with the environment inside: a line after every EVERY steps, with the mean return of greedy episodes, and a last
 * one with a hash of all that was learned, which is the same on every machine. Returns 0 where it was solved, IN_A_ROW times.
 *
 * SEED, STEPS (at most), EVERY, EPISODES and IN_A_ROW may be defined from outside; on a board, INSTRUCTIONS counts those of a step, and of them
 * those that decide and those that learn. */
#ifndef PRINT
#include <stdio.h>
#define PRINT(text) fputs(text, stdout)
#endif
#ifndef SEED
#define SEED 1u
#endif
#ifndef STEPS
#define STEPS 20000
#endif
#ifndef EVERY
#define EVERY 500
#endif
#ifndef EPISODES
#define EPISODES 100
#endif
#ifndef IN_A_ROW
#define IN_A_ROW 1 /* evaluations that must reach it */
#endif
#define SOLVED 475
#ifdef INSTRUCTIONS
#include "board.h"
static uint32_t unit, empty, start;
#define COUNT(number, what) do { start = counted(); what; number += taken(); } while (0)
#else
#define COUNT(number, what) do { what; } while (0)
#endif

#include "cartpole.h"
#include "learner.h"

static struct learner learner;

#ifdef INSTRUCTIONS
static uint32_t taken(void) /* instructions since `start` */
{
    return (uint32_t)(((counted() - start - empty) & COUNTER_MASK) * 100000ull / unit);
}
#endif

static void print_number(const char *before, uint32_t number)
{
    char text[12];
    int i = 11;
    text[i] = 0;
    do
        text[--i] = (char)('0' + number % 10);
    while (number /= 10);
    PRINT(before);
    PRINT(text + i);
}

static uint32_t hash(const float *values, int size, uint32_t found) /* Fowler, Noll & Vo's, of 32 bits */
{
    int i;
    for (i = 0; i < size; i++) {
        union { float value; uint32_t bits; } word;
        word.value = values[i];
        found = (found ^ word.bits) * 16777619u;
    }
    return found;
}

static uint32_t evaluate(uint32_t seed) /* the mean return of greedy episodes, which teach nothing */
{
    struct cartpole cartpole;
    uint32_t total = 0;
    int i, terminated, truncated;
    cartpole.random = seed;
    for (i = 0; i < EPISODES; i++) {
        cartpole_reset(&cartpole);
        do {
            cartpole_step(&cartpole, learner_act(&learner, cartpole.state, 1), &terminated, &truncated);
            total++;
        } while (!terminated && !truncated);
    }
    return total / EPISODES;
}

int main(void)
{
    struct cartpole cartpole;
    uint32_t i, steps, solved = 0, reached = 0, found;
    float before[4];
    int terminated, truncated, choice;
#ifdef INSTRUCTIONS
    uint32_t most = 0;
    uint64_t all = 0, all_deciding = 0, all_learning = 0;
    unit = counted_by();
    start = counted();
    empty = counted() - start;
#endif
    learner_start(&learner, 2654435769u * SEED + 1u);
    cartpole.random = 2246822519u * SEED + 1u;
    cartpole_reset(&cartpole);
    for (steps = 1; steps <= STEPS && !solved; steps++) {
#ifdef INSTRUCTIONS
        uint32_t deciding = 0, learning = 0, playing = 0, together;
#endif
        for (i = 0; i < 4; i++)
            before[i] = cartpole.state[i];
        COUNT(deciding, choice = learner_act(&learner, before, 0));
        COUNT(playing, cartpole_step(&cartpole, choice, &terminated, &truncated));
        COUNT(learning, learner_learn(&learner, before, choice, 1.0f, cartpole.state, terminated, truncated));
#if LEARNER_DREAMS
        for (i = 0; i < LEARNER_REHEARSALS; i++)
            COUNT(learning, learner_rehearse(&learner));
        for (i = 0; i < LEARNER_DREAMS && learner_may_dream(&learner); i++)
            COUNT(learning, learner_dream(&learner));
#endif
        if (terminated || truncated)
            COUNT(playing, cartpole_reset(&cartpole));
#ifdef INSTRUCTIONS
        together = deciding + learning + playing;
        all += together;
        all_deciding += deciding;
        all_learning += learning;
        most = together > most ? together : most;
#endif
        if (steps % EVERY == 0) {
            uint32_t mean = evaluate(3266489917u * SEED + steps);
            print_number("steps ", steps);
            print_number(" return ", mean);
            PRINT("\n");
            reached = mean >= SOLVED ? reached + 1 : 0;
            solved = reached < IN_A_ROW ? 0 : steps - (IN_A_ROW - 1) * EVERY; /* the first of them */
        }
    }
#ifdef INSTRUCTIONS
    print_number("instructions ", (uint32_t)(all / (steps - 1)));
    print_number(" most ", most);
    print_number(" deciding ", (uint32_t)(all_deciding / (steps - 1)));
    print_number(" learning ", (uint32_t)(all_learning / (steps - 1)));
    PRINT("\n");
#endif
    learner_settle(&learner);
    found = hash(learner.critic, CRITIC_PARAMETERS, hash(learner.actor, ACTOR_PARAMETERS, 2166136261u));
#if LEARNER_AVERAGES
    found = hash(learner.average, ACTOR_PARAMETERS, found);
#endif
#if LEARNER_DREAMS
    found = hash(learner.model.parameter, MODEL_PARAMETERS, found);
#endif
    print_number("solved ", solved);
    print_number(" hash ", found);
    PRINT("\n");
    return !solved;
}
