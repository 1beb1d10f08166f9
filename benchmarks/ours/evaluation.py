"""Environment steps per second of the evaluation of a student, in lock-step and task by task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from benchmarks import limit
from benchmarks.ours.learners import seeded
from benchmarks.peers.protocol import Measure, rate
from mbml import envs
from mbml.envs import Task
from mbml.evaluate import EvaluateConfig, Evaluation, evaluate_student, make_envs
from mbml.rows import RowLayout
from mbml.students import StudentConfig, make_student


class _Clock:
    """A distribution's environments with a clock around `step`; counts steps as well."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make, self.seconds, self.steps = make, 0.0, 0

    def __call__(self, parameter: Any) -> Any:
        env = self.make(parameter)
        inner = env.step

        def step(action: np.ndarray) -> Any:
            started = time.perf_counter()
            result = inner(action)
            self.seconds += time.perf_counter() - started
            self.steps += 1
            return result

        env.step = step
        return env


def evaluate(
    environment: str,
    horizon: int,
    width: int,
    depth: int,
    episodes: int,
    stack: int,
    kind: Literal["generative", "acting"] = "generative",
) -> Measure:
    """Environment steps per second over all unseen tasks, `stack` of them at a time; also the share of physics."""
    distribution = envs.get(environment)
    clock = _Clock(distribution.make)
    clocked = replace(distribution, make=clock)
    layout = RowLayout(distribution.observation_size, distribution.action_size)
    hidden = (width,) * depth
    config = StudentConfig(kind=kind, value_hidden=hidden, decoder_hidden=hidden, perturbation_hidden=hidden)
    student, tasks = make_student(config, layout, seeded()), distribution.tasks("test")

    def once(chosen: Sequence[Task]) -> None:
        evaluate_student(student, Evaluation(clocked, chosen, horizon, EvaluateConfig(episodes=episodes), seed=0))

    once(tasks[:1])

    def measure(seconds: float) -> dict[str, Any]:
        clock.seconds, clock.steps = 0.0, 0
        started = time.perf_counter()
        while (spent := time.perf_counter() - started) < seconds:
            for first in range(0, len(tasks), stack):
                once(tasks[first : first + stack])
        share = clock.seconds / spent
        return {"value": clock.steps / spent, "calls": clock.steps, "seconds": spent, "physics_share": share}

    return measure


def physics(environment: str, horizon: int) -> Measure:
    """Steps per second of the environments alone, under actions drawn beforehand."""
    distribution = envs.get(environment)
    stack = make_envs(distribution, distribution.tasks("test"), horizon).envs
    actions = np.random.default_rng(0).uniform(-1, 1, (horizon, distribution.action_size)).astype(np.float32)

    def measure(seconds: float) -> dict[str, Any]:
        steps, stepping, started = 0, 0.0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for env in stack:
                env.reset(seed=0)
            before = time.perf_counter()
            for action in actions:
                for env in stack:
                    env.step(action)
            stepping += time.perf_counter() - before
            steps += horizon * len(stack)
        return {"value": steps / stepping, "steps": steps}

    return measure


def evaluate_limit(library: limit.Library, environment: str, width: int, depth: int, stack: int) -> Measure:
    """Environment steps per second of the products alone that `stack` tasks' actions take.

    What the candidates of an observation share, `s` and `z`, goes through a first layer once.
    """
    distribution, config = envs.get(environment), StudentConfig()
    actions, shared = distribution.action_size, distribution.observation_size + config.encoder.embedding_size
    hidden, products = [width] * depth, limit.Products()
    for own, out in ((2 * actions, actions), (actions, actions), (actions, 1)):  # decoder, perturbation, value
        products.layers([shared, width], stack)
        products.layers([own, *hidden, out], stack * config.acting_candidates)
    return rate(products.step(library), stack)
