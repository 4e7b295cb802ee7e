from .config import Config, ConfigError
from .dream_env.stepped_dreams import SteppedDreams
from .envs.spaces import BrokenEnvironment
from .export.directory import Exported, export_policy
from .export.energy import energy
from .export.learner import ExportedLearner, export_learner
from .nodes import Unexportable
from .runners.compress import Compression
from .runners.stop import ClusterError, Diverged, Interrupted
from .runs.checkpoint import CheckpointError
from .runs.run import Run
from .training import compress_policy, load, resume, train

__version__: str
__all__ = [
    "BrokenEnvironment", "CheckpointError", "ClusterError", "Compression", "Config", "ConfigError", "Diverged", "Exported",
    "ExportedLearner", "Interrupted", "Run", "SteppedDreams", "Unexportable", "compress_policy", "energy", "export_learner",
    "export_policy", "load", "resume", "train",
]  # fmt: skip
