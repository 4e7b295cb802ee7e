"""Learning rules: how a spiking network's gradient is made from what happens within its ticks."""
