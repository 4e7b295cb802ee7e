/* Compares what is learned here with what is learned from the same steps in JAX: prints a line for each stretch of steps, returns 0
 * where all agree. */
#ifndef PRINT
#include <stdio.h>
#define PRINT(text) fputs(text, stdout)
#endif

#include "learner.h"
#include "vectors.h"

static struct learner learner;

static int differs(float got, float wanted)
{
    float apart = got - wanted, size = wanted < 0.0f ? -wanted : wanted;
    return (apart < 0.0f ? -apart : apart) > VECTOR_TOLERANCE * (1.0f + size);
}

int main(void)
{
    int i, j, failed = 0;
#if LEARNER_DREAMS
    int k;
#endif
    for (i = 0; i < VECTORS; i++) {
        const struct vector *wanted = &vectors[i];
        int faults = 0;
        learner_start(&learner, 1);
        for (j = 0; j < STRETCH; j++) {
            learner_learn(&learner, wanted->observation[j], wanted->choice[j], wanted->reward[j], wanted->next[j], wanted->terminated[j],
                          wanted->truncated[j]);
            faults += differs(learner.error < 0.0f ? -learner.error : learner.error, wanted->error[j]);
#if LEARNER_DREAMS
            faults += differs(learner.model_error, wanted->model_error[j]);
            for (k = 0; k < REHEARSED; k++)
                learner_rehearse_step(&learner, wanted->rehearsed[j * REHEARSED + k]);
            for (k = 0; k < DREAMT; k++)
                learner_imagine(&learner, wanted->begun[j * DREAMT + k], wanted->dreamt[j * DREAMT + k]);
#endif
        }
        (void)learner_act(&learner, wanted->observation[STRETCH - 1], 0);
        for (j = 0; j < LEARNER_CHOICES; j++)
            faults += differs(learner.output[j], wanted->output[j]);
        (void)learner_act(&learner, wanted->observation[STRETCH - 1], 1);
        for (j = 0; j < LEARNER_CHOICES; j++)
            faults += differs(learner.output[j], wanted->greedy_output[j]);
#if LEARNER_DREAMS
        for (j = 0; j < LEARNER_INPUTS; j++)
            faults += differs(learner.dream[j], wanted->dream[j]);
#endif
        PRINT(faults ? "WRONG\n" : "right\n");
        failed += faults > 0;
    }
    PRINT(failed ? "failed\n" : "passed\n");
    return failed > 0;
}
