"""How an environment is registered, told to another process: one that does not run the user's own script knows none of the ids that
are registered there."""

import pickle
from typing import Any

import cloudpickle
import gymnasium

from spikedream.envs.make import registered
from spikedream.envs.spaces import BrokenEnvironment


def copied(env_id: str, *more: Any) -> tuple[bytes, ...]:
    """What `register` needs there, and what else goes along, each pickled; raises BrokenEnvironment where that cannot be."""
    try:
        return tuple(cloudpickle.dumps(x) for x in (registered(env_id), *more))
    except BrokenEnvironment:
        raise
    except Exception as error:
        what = " ".join(str(error).split())
        raise BrokenEnvironment(
            f"{env_id} cannot be copied to another process ({what}); register it in a module and name it as module:Id-v0"
        ) from error


def register(env_id: str, spec: bytes) -> None:
    """Over there, where the id is not known already."""
    try:
        registered(env_id)
    except BrokenEnvironment:
        own = pickle.loads(spec)
        gymnasium.registry[own.id] = own
