/* The least program that acts: what a complete image takes of flash and RAM. */
#include "actor.h"

static struct actor actor;
volatile float sensors[ACTOR_INPUTS];
volatile float motors[ACTOR_OUTPUTS];

int main(void)
{
    float observation[ACTOR_INPUTS];
    int i;
    actor_reset(&actor);
    for (;;) {
        for (i = 0; i < ACTOR_INPUTS; i++)
            observation[i] = sensors[i];
#ifdef ACTOR_CHOICES
        motors[0] = (float)actor_act(&actor, observation);
#else
        float action[ACTOR_OUTPUTS];
        actor_act(&actor, observation, action);
        for (i = 0; i < ACTOR_OUTPUTS; i++)
            motors[i] = action[i];
#endif
    }
}
