"""spikedream: spiking agents that learn by dreaming inside spiking world models.

import spikedream as sd
run = sd.train("cartpole", seed=0)
run.evaluate(100).mean()
action = run.policy(obs)
env = run.dream_env(64)  # its world model, for an agent of your own
sd.export_policy(run, "c")
sd.compress_policy(run, density=0.2, rate=0.1, bits=8)

These names stand in `__init__.pyi`, and are imported when they are asked for: a process that plays environments needs no JAX, which
takes a second to import.
"""

from lazy_loader import attach_stub

from spikedream.envs import hidden_velocity, ini_cartpole, remote

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
hidden_velocity.register()
ini_cartpole.register()
remote.register()
