/* A model of the world, what it learns from, and one dream in it that goes on beside the real episode (Sutton 1990, Dyna). */
#ifndef DREAMS_H
#define DREAMS_H

#include "learner.h"

/* What the model must know of a real step beside the observation's moments: ranges, typical changes, where reality stands. */
void dreams_experience(struct learner *learner, const float *observation, float reward, const float *next, int terminated);

/* Keeps a real step, or not, so that each of all is kept equally often (Vitter 1985, algorithm R). */
void dreams_remember(struct learner *learner, const float *observation, int choice, float reward, const float *next);

/* One gradient step of the model on a real step; its error before. */
float dreams_fit(struct learner *learner, const float *observation, int choice, float reward, const float *next);

/* Where the dream goes on: where it was, or at the newest state that did not end the task, or at the remembered one of this place. */
void dreams_awake(struct learner *learner, int place);

/* Moves the dream on by a step. It ends where it leaves the range of those observations in which real episodes went on. Returns the
 * reward. */
float dreams_imagine(struct learner *learner, int choice, int *ended);

/* A whole number from 0 on. */
int dreams_drawn_below(struct learner *learner, float size);

#endif
