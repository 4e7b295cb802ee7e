/* See model.h. */
#include "model.h"

#include "functions.h"
#include "model_start.h"

#define NEURON_TICKS MODEL_TICKS
#define NEURON_THRESHOLD MODEL_THRESHOLD
#define NEURON_SOFT_RESET MODEL_SOFT_RESET
#define NEURON_FOLLOWS_RESET MODEL_FOLLOWS_RESET
#define NEURON_SURROGATE(x) MODEL_SURROGATE(x)
#include "neuron.h"

#define FIRST 0.9f /* Adam (Kingma & Ba 2015) */
#define SECOND 0.999f
#define TINY 1e-8f

static struct window fire(const struct model *model, const float *in, int j)
{
    float current = model->parameter[MODEL_BIAS + j];
    int i;
    for (i = 0; i < MODEL_INPUTS; i++)
        current += in[i] * model->parameter[MODEL_WEIGHT + i * MODEL_HIDDEN + j];
    return neuron(logistic(model->parameter[MODEL_DECAY + j]), current);
}

static void read(const struct model *model, int j, float rate, float charge, float *out)
{
    const float *by_charge = model->parameter + MODEL_CHARGE + j * MODEL_OUTPUTS;
    const float *by_spikes = model->parameter + MODEL_SPIKES + j * MODEL_OUTPUTS;
    int k;
    for (k = 0; k < MODEL_OUTPUTS; k++)
        out[k] += charge * by_charge[k] + rate * by_spikes[k];
}

/* Outputs, and what the gradient needs where `window` has room for it. */
static void forward(const struct model *model, const float *in, float *out, struct window *window)
{
    int j, k;
    for (k = 0; k < MODEL_OUTPUTS; k++)
        out[k] = model->parameter[MODEL_CHARGE_BIAS + k];
    for (j = 0; j < MODEL_HIDDEN; j++) {
        struct window one = fire(model, in, j);
        float rate = (float)one.spikes / MODEL_TICKS;
        read(model, j, rate, rate + one.v / (MODEL_TICKS * MODEL_THRESHOLD), out);
        if (window)
            window[j] = one;
    }
}

void model_predict(const struct model *model, const float *in, float *out)
{
    forward(model, in, out, 0);
}

/* Of the neuron j, by what the error changes by with each output. */
static void differentiate(const struct model *model, const float *in, const struct window *window, int j, const float *pull,
                          float *gradient)
{
    float rate = (float)window->spikes / MODEL_TICKS, charge = rate + window->v / (MODEL_TICKS * MODEL_THRESHOLD);
    float by_charge = 0, by_rate = 0, by_current;
    int i, k;
    for (k = 0; k < MODEL_OUTPUTS; k++) {
        int c = MODEL_CHARGE + j * MODEL_OUTPUTS + k, s = MODEL_SPIKES + j * MODEL_OUTPUTS + k;
        by_charge += pull[k] * model->parameter[c];
        by_rate += pull[k] * model->parameter[s];
        gradient[c] = pull[k] * charge;
        gradient[s] = pull[k] * rate;
    }
    by_rate += by_charge;
    by_charge /= MODEL_THRESHOLD;
    by_current = (by_rate * window->spikes_current + by_charge * window->v_current) / MODEL_TICKS;
    gradient[MODEL_BIAS + j] = by_current;
    gradient[MODEL_DECAY + j] =
        MODEL_LEARNS_DECAY * (by_rate * window->spikes_decay + by_charge * window->v_decay) / MODEL_TICKS;
    for (i = 0; i < MODEL_INPUTS; i++)
        gradient[MODEL_WEIGHT + i * MODEL_HIDDEN + j] = in[i] * by_current;
}

static void descend(struct model *model, const float *gradient)
{
    float square = 0, length, shrunk, first, second;
    int i;
    for (i = 0; i < MODEL_PARAMETERS; i++)
        square += gradient[i] * gradient[i];
    length = root(square);
    shrunk = length < MODEL_GRADIENT_CLIP ? 1.0f : MODEL_GRADIENT_CLIP / length;
    model->first_left *= FIRST;
    model->second_left *= SECOND;
    first = MODEL_LEARNING_RATE / (1.0f - model->first_left);
    second = 1.0f / (1.0f - model->second_left);
    for (i = 0; i < MODEL_PARAMETERS; i++) {
        float g = shrunk * gradient[i];
        model->first[i] = FIRST * model->first[i] + (1.0f - FIRST) * g;
        model->second[i] = SECOND * model->second[i] + (1.0f - SECOND) * (g * g);
        if (model->second[i] < 1e-30f) /* as a denormal it would be slow, or zero, by machine */
            model->second[i] = 0.0f;
        model->parameter[i] -= first * model->first[i] / (root(second * model->second[i]) + TINY);
    }
}

float model_fit(struct model *model, const float *in, const float *wanted)
{
    static struct window window[MODEL_HIDDEN];
    static float gradient[MODEL_PARAMETERS];
    float out[MODEL_OUTPUTS], pull[MODEL_OUTPUTS], error = 0;
    int j, k;
    forward(model, in, out, window);
    for (k = 0; k < MODEL_OUTPUTS; k++) {
        float apart = out[k] - wanted[k];
        error += apart * apart / MODEL_OUTPUTS;
        pull[k] = 2.0f * apart / MODEL_OUTPUTS;
        gradient[MODEL_CHARGE_BIAS + k] = pull[k];
    }
    for (j = 0; j < MODEL_HIDDEN; j++)
        differentiate(model, in, &window[j], j, pull, gradient);
    descend(model, gradient);
    return error;
}

void model_start(struct model *model)
{
    int i;
    for (i = 0; i < MODEL_PARAMETERS; i++) {
        model->parameter[i] = start_model[i];
        model->first[i] = start_first[i];
        model->second[i] = start_second[i];
    }
    model->first_left = START_FIRST_LEFT;
    model->second_left = START_SECOND_LEFT;
}
