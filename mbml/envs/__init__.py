"""Task distributions by name: `envs.get("umaze_goal").make(task)`.

A new environment is one file that defines a `TaskDistribution` under its own name, and one line in `_HOME`.
"""

from importlib import import_module

from mbml.envs.base import Reward, SimulationDiverged, Task, TaskDistribution

__all__ = ["NAMES", "Reward", "SimulationDiverged", "Task", "TaskDistribution", "UnknownEnvironment", "get"]

# Name of the distribution -> module of this package that defines it.
_HOME = {
    "ant_dir": "ant",
    "ant_goal": "ant",
    "half_cheetah_vel": "half_cheetah",
    "humanoid_dir": "humanoid",
    "umaze_goal": "umaze",
    "walker_param": "walker",
}

NAMES = tuple(_HOME)


class UnknownEnvironment(ValueError):
    """The name belongs to no task distribution."""


def get(name: str) -> TaskDistribution:
    """The task distribution called `name`; raises `UnknownEnvironment` with the valid names otherwise."""
    if name not in _HOME:
        raise UnknownEnvironment(f"unknown environment {name!r}; choose one of {', '.join(NAMES)}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
