"""Families of tasks by name: `envs.get("umaze_goal")`, or `envs.get("my_package.my_module:my_family")`.

Ours are also known to gymnasium: `gymnasium.make("mbml/AntDir-v0", task=3, split="test")`.
"""

import sys
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import gymnasium

from mbml.envs.ant import ant_dir, ant_goal
from mbml.envs.family import Family, FamilyError, Reward, Task, family
from mbml.envs.half_cheetah import half_cheetah_vel
from mbml.envs.humanoid import humanoid_dir
from mbml.envs.logged import SCHEME, logged_family
from mbml.envs.mujoco_env import SimulationDiverged
from mbml.envs.umaze import umaze_goal
from mbml.envs.view import View
from mbml.envs.walker import walker_param
from mbml.registry import Registry, UnknownName
from mbml.serialise import sha256_of

__all__ = ["FAMILIES", "Family", "FamilyError", "Reward", "SimulationDiverged", "Task", "View", "family", "get"]

FAMILIES = Registry("environment", ant_dir, ant_goal, half_cheetah_vel, humanoid_dir, umaze_goal, walker_param)


def get(name: str) -> Family:
    """The family called `name`, the one at `module:attribute`, a module of the current directory included, or the
    logged one of the dataset in the folder `data:folder`.

    Raises:
        UnknownName: it is none of these.
        FamilyError: there is no such module or attribute, or it is no family.
    """
    if name.startswith(SCHEME):
        return logged_family(name)
    if ":" in name:
        return _outside(name)
    try:
        return FAMILIES[name]
    except UnknownName as error:
        raise UnknownName(f"{str(error)[:-1]}, or give a family of your own as module:attribute.") from None


def modules_of(name: str) -> list[ModuleType]:
    """The module of a family from outside, or the package that it is in; what other machines need to get it, too."""
    if ":" not in name or name.startswith(SCHEME):
        return []
    get(name)
    return [sys.modules[name.partition(":")[0].partition(".")[0]]]


@cache
def _outside(name: str) -> Family:
    module_name, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's file does
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise FamilyError(f"There is no module {module_name!r} here or on Python's path for {name!r}.") from None
        if isinstance(error, ValueError) and not module_name:
            raise FamilyError(f"{name!r} names no module; write it as module:family.") from None
        raise FamilyError(f"{module_name} cannot be imported: {type(error).__name__}: {error}.") from error
    found = getattr(module, attribute, None)
    if not isinstance(found, Family):
        what = "has no" if found is None else f"has a {type(found).__name__} for"
        raise FamilyError(f"{module_name} {what} {attribute!r}; it must be made by mbml.envs.family.")
    return replace(found, fingerprint=sha256_of(Path(module.__file__ or ""))[:16])


def _registered(
    family: str, task: int = 0, split: str = "train", horizon: int | None = None, render_mode: str | None = None
) -> gymnasium.Env:
    """What gymnasium.make calls; `task` is the task's number in its split."""
    chosen = FAMILIES[family]
    tasks = chosen.tasks(split)
    if not 0 <= task < len(tasks):
        raise FamilyError(f"{family} has {len(tasks)} {split} tasks, numbered from 0; there is no task {task}.")
    env = chosen.environment(tasks[task], horizon)
    env.render_mode = render_mode
    return env


for _name in FAMILIES:
    gymnasium.register(f"mbml/{_name.title().replace('_', '')}-v0", f"{__name__}:_registered", kwargs={"family": _name})
