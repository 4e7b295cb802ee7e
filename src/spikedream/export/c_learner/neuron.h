/* A leaky integrate-and-fire neuron's ticks under a constant current from rest, and with them what its spikes and its last membrane
 * change by with its current and with the logit of its decay: the current is the same at every tick and the state is fresh, so that one
 * number is the whole influence of all that feeds the current. Who includes it says by NEURON_... which neuron it is. */
#ifndef NEURON_H
#define NEURON_H

struct window {
    int spikes;
    float spikes_current, spikes_decay; /* derivatives of the number of spikes */
    float v, v_current, v_decay;        /* the membrane after its last reset, and its derivatives */
};

static inline struct window neuron(float b, float current)
{
    struct window window = {0, 0, 0, 0, 0, 0};
    float slope = b * (1.0f - b), v = 0, v_current = 0, v_decay = 0;
    int tick;
    for (tick = 0; tick < NEURON_TICKS; tick++) {
        float u = b * v + current, u_current = b * v_current + 1.0f, u_decay = b * v_decay + slope * v;
        float excess = u - NEURON_THRESHOLD, bump = NEURON_SURROGATE(excess);
        int spike = excess >= 0.0f;
        window.spikes += spike;
        window.spikes_current += bump * u_current;
        window.spikes_decay += bump * u_decay;
#if NEURON_SOFT_RESET
        v = spike ? excess : u;
        v_current = u_current;
        v_decay = u_decay;
#else
        v = spike ? 0.0f : u;
        v_current = spike ? 0.0f : u_current;
        v_decay = spike ? 0.0f : u_decay;
#endif
#if NEURON_FOLLOWS_RESET
        v_current -= (NEURON_SOFT_RESET ? NEURON_THRESHOLD : u) * (bump * u_current);
        v_decay -= (NEURON_SOFT_RESET ? NEURON_THRESHOLD : u) * (bump * u_decay);
#endif
    }
    window.v = v;
    window.v_current = v_current;
    window.v_decay = v_decay;
    return window;
}

#endif
