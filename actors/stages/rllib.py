"""One of RLlib's offline algorithms on a single task's batch: a baseline beside the teachers.

The batch goes straight into RLlib's `Learner.update`, in the columns of `mbml.export`. RLlib's own reader is passed
by: it runs on CPUs beside the actor's and hangs where there are too few, takes minibatches in the order of the file,
and with it RLlib moves CQL's target networks only once in two updates.
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
from torch import Tensor

from actors.artefacts import env_maker, write_json
from actors.stage import Ref, Run, stage
from mbml.data import Dataset
from mbml.evaluate import evaluate_actor
from mbml.export import rllib_columns
from mbml.seeding import generator_of, seed_of
from mbml.settings import Count, NotNegative, Share
from mbml.teachers.contract import TeacherConfig
from mbml.transitions import TransitionBatch

Algorithm = Literal["bc", "cql", "iql"]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
_CHUNK = 50


class RLlibError(RuntimeError):
    """RLlib refused, failed or diverged."""


@dataclass(frozen=True)
class RLlibConfig(TeacherConfig):
    """RLlib's offline algorithms as single-task baselines; everything that is not here is RLlib's default.

    Critics encode observation and action in the hidden layers (ReLU), and join them in one more layer.
    """

    algorithms: tuple[Algorithm, ...] = ()
    """Which of bc, cql and iql to train; none by default."""
    updates: Count = 20_000
    """Gradient updates per task."""
    cql_weight: NotNegative = 5.0
    """Weight of CQL's conservative term."""
    iql_expectile: Share = 0.8
    """Expectile of IQL's value function."""
    iql_beta: NotNegative = 1.0
    """Inverse temperature of IQL's advantage weights."""
    evaluation_episodes: Count = 10
    """Episodes of the last policy on the true training task."""


@dataclass(frozen=True)
class RLlib:
    """One algorithm on the batch of one task."""

    env: str
    horizon: int
    algorithm: str
    task: int
    config: RLlibConfig
    seed: int
    collect: tuple[Ref, ...]


@stage(version=1)
def rllib(spec: RLlib, run: Run) -> dict[str, Any]:
    """Leaves `returns.json`, the mean return of the last policy: nothing is selected by return."""
    try:
        score = _trained_score(spec, run)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RLlibError(f"RLlib's {spec.algorithm} failed on task {spec.task}: {reason}") from error
    write_json(run.out / "returns.json", [{"task": spec.task, "return": score}])
    return {"return": score}


def _trained_score(spec: RLlib, run: Run) -> float:
    batch = Dataset.open(*(path / "dataset" for path in run.paths(spec.collect))).task(spec.task)
    learner = OfflineLearner(spec.algorithm, spec.config, batch, spec.seed, spec.task)
    for update in range(spec.config.updates):
        if update % _CHUNK == 0:
            run.report(update, spec.config.updates, "updates")
        learner.update()
    envs = env_maker(spec.env, [spec.task], spec.horizon)(spec.config.evaluation_episodes)
    # From the same starts for every algorithm.
    seeds = [seed_of(spec.seed, "rllib", "evaluation", spec.task, copy) for copy in range(len(envs))]
    return float(evaluate_actor(learner.act, envs, 1, seeds).mean())


class OfflineLearner:
    """One RLlib learner and its batch. Minibatches are uniform with replacement, as those of the BCQ teachers.

    The same arguments give the same bits on the same machine: RLlib seeds this process's global generators and turns
    on torch's deterministic algorithms.
    """

    def __init__(self, algorithm: str, config: RLlibConfig, batch: TransitionBatch, seed: int, task: int) -> None:
        """Import RLlib (4 s the first time) and build the networks; `seed` and `task` decide all random numbers."""
        for name in ("ray.rllib", "ray._common.deprecation"):
            logging.getLogger(name).setLevel(logging.ERROR)
        from ray.rllib.core import DEFAULT_MODULE_ID

        self.algorithm, self.batch_size, self._module_id = algorithm, config.batch_size, DEFAULT_MODULE_ID
        self.generator = generator_of(seed, "rllib", algorithm, task)
        columns = rllib_columns(batch).items()
        self.columns = {name: torch.from_numpy(np.array(column)) for name, column in columns if name != "eps_id"}
        known = {DEFAULT_MODULE_ID: spaces(batch.observation.shape[1], batch.action.shape[1])}
        own = algorithm_config(algorithm, config, seed_of(seed, "rllib", algorithm, task, "networks") % 2**32)
        self.learner = own.build_learner(spaces=known)
        self.module = self.learner.module[DEFAULT_MODULE_ID]

    def sample(self) -> dict[str, Tensor]:
        """The next minibatch: RLlib's columns, `[batch_size, ...]`."""
        available = len(self.columns["rewards"])
        indices = torch.randint(available, (self.batch_size,), generator=self.generator)
        return {name: column[indices] for name, column in self.columns.items()}

    def update(self) -> None:
        """One gradient update of every network of the algorithm, and one of its targets."""
        from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

        batch = {self._module_id: SampleBatch(self.sample())}
        self.learner.update(batch=MultiAgentBatch(batch, env_steps=self.batch_size))

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """The median of the policy `[n, d_a]` for observations `[n, d_s]`, clipped to [-1, 1]."""
        mean = self.module.forward_inference({"obs": observation})["action_dist_inputs"].chunk(2, dim=-1)[0]
        if not mean.isfinite().all():
            raise RLlibError("its policy diverged to actions that are not numbers; lower the learning rate")
        # BC's Gaussian is one of actions. Those of CQL and IQL are squashed, which RLlib's to_deterministic() forgets.
        return (mean if self.algorithm == "bc" else mean.tanh()).clamp(-1.0, 1.0)


def spaces(observation_size: int, action_size: int) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """Observation and action space as RLlib wants them."""
    observation = gymnasium.spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
    return observation, gymnasium.spaces.Box(-1.0, 1.0, (action_size,), np.float32)


def algorithm_config(algorithm: str, config: RLlibConfig, seed: int) -> Any:
    """RLlib's AlgorithmConfig of `algorithm`; imports RLlib."""
    from ray.rllib.algorithms.bc import BCConfig
    from ray.rllib.algorithms.cql import CQLConfig
    from ray.rllib.algorithms.iql import IQLConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    rate = config.learning_rate
    common = {"gamma": config.discount, "train_batch_size_per_learner": config.batch_size}
    critics = {"actor_lr": rate, "critic_lr": rate, "tau": config.tau}
    if algorithm == "bc":
        chosen = BCConfig().training(lr=rate, **common)
    elif algorithm == "cql":
        # RLlib starts the count of CQL's cloning updates anew in every call, so with any it would clone to the end.
        own = {"bc_iters": 0, "min_q_weight": config.cql_weight, "lr": None, "alpha_lr": rate}
        chosen = CQLConfig().training(**own, **critics, **common)
    elif algorithm == "iql":
        own = {"beta": config.iql_beta, "expectile": config.iql_expectile, "value_lr": rate}
        chosen = IQLConfig().training(**own, **critics, **common)
    else:
        raise RLlibError(f"there is no such algorithm here; choose one of {', '.join(ALGORITHMS)}")
    activations: dict[str, Any] = {"fcnet_activation": "relu", "fusionnet_activation": "relu"}
    networks = DefaultModelConfig(fcnet_hiddens=list(config.hidden), fusionnet_hiddens=[], **activations)
    return chosen.rl_module(model_config=networks).debugging(seed=seed)
