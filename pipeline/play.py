"""Acting by a policy's folder in an environment, to be looked at: returns, a picture, and films where possible."""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium
import numpy as np
import torch
from PIL import Image

from mbml import AdaptivePolicy, envs
from mbml.data import Dataset
from mbml.deploy.description import DESCRIPTION, Space
from mbml.envs import Family, SimulationDiverged, Task
from mbml.envs.guard import blaming
from mbml.envs.rendering import backend
from mbml.envs.view import Recorder
from mbml.export import as_logged
from mbml.serialise import replacing
from pipeline.config import ConfigError, folder_here
from pipeline.publish import Log, make_folder
from pipeline.report.behaviour import Shown, panels_of
from pipeline.report.drawing import styled, write_png
from pipeline.report.wording import task_heading

_FRAMES = 150  # of a film, at most
_PIXELS = 320  # of a frame's width, at most


@dataclass
class _Film:
    """Frames of an episode, every so many steps."""

    every: int
    frames: list[Image.Image] = field(default_factory=list)
    fault: str = ""
    """Why there are none."""

    def take(self, env: Recorder, step: int) -> None:
        """Keep the frame before a step, if it is one of those that are shown."""
        if step % self.every or self.fault:
            return
        try:
            image = Image.fromarray(np.asarray(env.render(), np.uint8))
        except (Exception, SystemExit) as error:  # whatever a user's environment lacks
            self.frames, self.fault = [], f"render() fails with {type(error).__name__}: {error}".rstrip(".")
        else:
            self.frames.append(image.reduce(-(-image.width // _PIXELS)))


@dataclass(frozen=True)
class Given:
    """Transitions that a policy sees before it acts: the first so many of a task of a dataset."""

    folder: str
    task: int
    transitions: int

    def show(self, policy: AdaptivePolicy, log: Log) -> None:
        """Let a policy learn from them; raises ValueError for what is not there or does not fit."""
        rows = as_logged(Dataset.open(self.folder), self.task).rows(0, self.transitions)
        there, own = (rows.observation.shape[1], rows.action.shape[1]), policy.description
        if there != (fits := (own.observation.size, own.action.size)):
            fault = f"{self.folder} has observations and actions of {there} numbers"
            raise ConfigError(f"{fault}; those of the policy have {fits}.")
        for step in range(len(rows)):
            seen, action, following = rows.observation[step], rows.action[step], rows.next_observation[step]
            policy.observe(seen, action, rows.reward[step], following, rows.terminated[step], rows.truncated[step])
        policy.begin_episode()
        log(f"given {len(rows)} transitions of task {self.task} of {self.folder}{_belief(policy)}")


def play(
    folder: str, env: str, task: str, episodes: int, out: str, seed: int, log: Log, given: Given | None = None
) -> int:
    """Let the policy in `folder` adapt to a task for some episodes, and leave what it did in `out`.

    Raises ValueError, one sentence, for what does not fit together.
    """
    torch.set_num_threads(1)  # one entity's products are small: more would wait for each other, and for busy neighbours
    policy = AdaptivePolicy.load(folder, seed=seed)
    about = policy.description
    if not env and about.data.source == "logged":
        raise ConfigError(f"{folder} learned from logs; say with --env in which environment it is to act.")
    family = envs.get(env or about.data.environment)
    chosen = _task(family, task)
    sizes = {
        "observations": (about.observation.size, family.observation_size),
        "actions": (about.action.size, family.action_size),
    }
    for what, (own, there) in sizes.items():
        if own != there:
            raise ConfigError(f"{folder} is a policy for {what} of {own} numbers; those of {family.name} have {there}.")
    place = folder_here(out or f"runs/play-{family.name}-{task.replace('/', '-')}".replace(":", "-"))
    if any((part / DESCRIPTION).exists() for part in (place.resolve(), *place.resolve().parents)):
        raise ConfigError(f"{place} is in a policy's folder, which holds nothing else; choose another with --out.")
    log(f"{about.title}, {chosen.split} task {chosen.index}: {chosen.label}")
    if given:
        given.show(policy, log)
    make_folder(place)
    made = family.environment(chosen, about.data.horizon)
    recorder = Recorder(_in_units(about.action, made), family.view)
    drawn_by, fault = _camera(recorder.unwrapped)
    films = {number: _Film(-(-about.data.horizon // _FRAMES), fault=fault) for number in sorted({1, episodes})}
    returns = {}
    with patch.dict(os.environ, drawn_by):
        for number in range(1, episodes + 1):
            first, film = seed if number == 1 else None, films.get(number)
            returns[number], steps = _episode(policy, recorder, first, film)
            log(f"episode {number}: return {returns[number]:.1f} in {steps} steps{_belief(policy)}")
        with blaming(f"close of {family.name}"):
            recorder.close()
    files = [place / "behaviour.png", *_written(films, recorder.metadata.get("render_fps", 20), place)]
    _draw(family, chosen, recorder.shown(), returns, files[0])
    if faults := {film.fault for film in films.values()} - {""}:
        log(f"No film: {'; '.join(faults)}. The picture is there.")
    log(f"Files: {', '.join(map(str, files))}")
    return 0


def _task(family: Family, name: str) -> Task:
    split, _, number = name.partition("/")
    tasks = family.splits.get(split, ())
    if not (number.isascii() and number.isdecimal() and len(number) < 10) or int(number) >= len(tasks):
        there = ", ".join(f"{s}/0 to {s}/{len(found) - 1}" for s, found in family.splits.items() if found)
        raise ConfigError(f"{family.name} has no task {name!r}; it has {there}.")
    return tasks[int(number)]


def _in_units(action: Space, env: gymnasium.Env) -> gymnasium.Env:
    """`env`, whose actions lie in [-1, 1], for actions in a policy's units: the same, or those of what is inside."""
    low, high = action.bounds
    inner = env.unwrapped.action_space
    if ((low == -1) & (high == 1)).all() or not isinstance(inner, gymnasium.spaces.Box):
        return env
    return gymnasium.wrappers.RescaleAction(env, inner.low, inner.high)


def _camera(env: Any) -> tuple[dict[str, str], str]:
    """Make an environment give frames: environment variables that this needs, and why it cannot."""
    if "rgb_array" not in env.metadata.get("render_modes", ()):
        return {}, "the environment draws no frames"
    env.render_mode = "rgb_array"
    if not type(getattr(env, "model", None)).__module__.startswith("mujoco"):
        return {}, ""
    found, faults = backend()
    if found is None:
        tried = ", ".join(f"{name} ({fault})" for name, fault in faults.items())
        return {}, f"no way to draw without a screen works on this machine; tried were {tried}"
    return {"MUJOCO_GL": found}, ""


def _episode(policy: AdaptivePolicy, env: Recorder, seed: int | None, film: _Film | None) -> tuple[float, int]:
    """Return and length of an episode; the policy learns from it."""
    observation, _ = env.reset(seed=seed)
    earned, steps, ended = 0.0, 0, False
    while not ended:
        if film:
            film.take(env, steps)
        action = policy.act(observation)
        try:
            following, reward, terminated, truncated, _ = env.step(action)
        except SimulationDiverged:  # no transition: the episode is over with the one before
            policy.begin_episode()
            break
        policy.observe(observation, action, reward, following, terminated, truncated)
        observation, ended = following, terminated or truncated
        earned, steps = earned + float(reward), steps + 1
    return earned, steps


def _belief(policy: AdaptivePolicy) -> str:
    """Which task it believes to be in, where it weighs training tasks and has seen something."""
    weights, about = policy.belief.tasks, policy.description
    if weights is None or not weights.any():
        return ""
    task = about.tasks[weights.argmax()]
    number = f"train/{task.index}" if about.data.source == "collected" else task.index
    label = task.label if task.label.startswith("(") else f"({task.label})"  # which is how points are written
    return f"; most like training task {number} {label}, {weights.max():.0%}"


def _draw(family: Family, task: Task, shown: Sequence[np.ndarray], returns: dict[int, float], file: Path) -> None:
    episodes = {n: (np.arange(1, len(values) + 1), values) for n, values in enumerate(shown, 1)}
    title = f"{family.title}, {task.split} task {task.index}: {task_heading(task.label, family.parameter)}"
    with blaming(f"feature of {family.name}"):
        (feature,) = family.features([task])
    one = Shown(title, feature, episodes, {n: f": {value:.1f}" for n, value in returns.items()})
    with replacing(file) as temporary:
        write_png(styled(lambda: panels_of(family.view, [one])), temporary)


def _written(films: dict[int, _Film], rate: float, place: Path) -> list[Path]:
    """The films as files, MP4 where imageio-ffmpeg is installed, else GIF; none of an earlier call stays."""
    try:
        ffmpeg = importlib.import_module("imageio_ffmpeg")
    except ImportError:
        ffmpeg = None
    files = []
    for number, film in films.items():
        gif, mp4 = (place / f"episode-{number}{suffix}" for suffix in (".gif", ".mp4"))
        gif.unlink(missing_ok=True)
        mp4.unlink(missing_ok=True)
        if not film.frames:
            continue
        files.append(mp4 if ffmpeg else gif)
        with replacing(files[-1]) as temporary:
            if ffmpeg:
                writer = ffmpeg.write_frames(str(temporary), film.frames[0].size, fps=rate, output_params=["-f", "mp4"])
                writer.send(None)
                for frame in film.frames:
                    writer.send(np.ascontiguousarray(frame))
                writer.close()
            else:
                first, *others = [frame.quantize(64) for frame in film.frames]
                how: dict[str, Any] = {"append_images": others, "duration": 1000 / rate, "loop": 0}
                first.save(temporary, format="GIF", save_all=True, **how)
    return files
