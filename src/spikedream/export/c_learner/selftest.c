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
    for (i = 0; i < VECTORS; i++) {
        const struct vector *wanted = &vectors[i];
        int faults = 0;
        learner_start(&learner, 1);
        for (j = 0; j < STRETCH; j++) {
            learner_learn(&learner, wanted->observation[j], wanted->choice[j], wanted->reward[j], wanted->next[j], wanted->terminated[j],
                          wanted->truncated[j]);
            faults += differs(learner.error < 0.0f ? -learner.error : learner.error, wanted->error[j]);
        }
        (void)learner_act(&learner, wanted->observation[STRETCH - 1], 1);
        for (j = 0; j < LEARNER_CHOICES; j++)
            faults += differs(learner.output[j], wanted->output[j]);
        PRINT(faults ? "WRONG\n" : "right\n");
        failed += faults > 0;
    }
    PRINT(failed ? "failed\n" : "passed\n");
    return failed > 0;
}
