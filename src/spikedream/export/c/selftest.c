/* Compares the actor with what the trained policy did: prints a line for each test vector, returns 0 where all agree. */
#ifndef PRINT
#include <stdio.h>
#define PRINT(text) fputs(text, stdout)
#endif

#include <stdint.h>

#include "actor.h"
#include "vectors.h"

static uint8_t spikes[VECTOR_SPIKES / 8 + 1];

static inline void spiked(int layer, int tick, int neuron)
{
    int place = vector_layers[layer] + tick * vector_neurons[layer] + neuron;
    spikes[place / 8] |= (uint8_t)(1 << place % 8);
}

#define ACTOR_SPIKE(layer, tick, neuron) spiked(layer, tick, neuron)
#include "actor.c"

static void print_hex(uint32_t word)
{
    char text[10];
    int i;
    text[0] = ' ';
    for (i = 0; i < 8; i++)
        text[1 + i] = "0123456789abcdef"[word >> (28 - 4 * i) & 15];
    text[9] = 0;
    PRINT(text);
}

static int wrong(const struct vector *wanted, const struct actor *actor)
{
    int i, faults = 0;
    uint32_t hash = 2166136261u;
    for (i = 0; i < VECTOR_SPIKES / 8 + 1; i++) {
        faults += spikes[i] != wanted->spikes[i];
        hash = (hash ^ spikes[i]) * 16777619u;
    }
    print_hex(hash);
    for (i = 0; i < ACTOR_OUTPUTS; i++) {
        union { float value; uint32_t bits; } got;
        got.value = actor->output[i];
        faults += got.bits != wanted->output[i];
        print_hex(got.bits);
    }
    return faults;
}

int main(void)
{
    static struct actor actor;
    int i, j, failed = 0;
    actor_reset(&actor);
    for (i = 0; i < VECTORS; i++) {
        const struct vector *wanted = &vectors[i];
        int faults = 0;
        for (j = 0; j < VECTOR_SPIKES / 8 + 1; j++)
            spikes[j] = 0;
        if (wanted->begins)
            actor_reset(&actor);
#ifdef ACTOR_CHOICES
        faults += actor_act(&actor, wanted->observation) != wanted->action;
#else
        float action[ACTOR_OUTPUTS];
        actor_act(&actor, wanted->observation, action);
        for (j = 0; j < ACTOR_OUTPUTS; j++)
            faults += magnitude(action[j] - wanted->action[j]) > VECTOR_TOLERANCE;
#endif
        faults += wrong(wanted, &actor);
        PRINT(faults ? " WRONG\n" : "\n");
        failed += faults > 0;
    }
    PRINT(failed ? "failed\n" : "passed\n");
    return failed > 0;
}
