"""RLlib's offline algorithms for real: in an actor that has all CPUs of the pipeline's own Ray."""

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from actors.artefacts import read_json
from actors.host import remote
from actors.stage import Job, Ref
from actors.stages.rllib import (
    ALGORITHMS,
    OfflineLearner,
    RLlib,
    RLlibConfig,
    RLlibError,
    algorithm_config,
    spaces,
)
from actors.store import Store
from mbml import envs
from mbml.data import DatasetWriter, TransitionBatch
from mbml.export import export_parquet

HORIZON = 15
TINY = RLlibConfig(updates=4, batch_size=16, hidden=(16, 16), evaluation_episodes=3)


def random_play(task, rows: int) -> TransitionBatch:
    """Uniformly random actions in the task's environment."""
    random = np.random.default_rng(task.index)
    env = envs.get("umaze_goal").environment(task, HORIZON)
    columns: list[tuple] = []
    observation, _ = env.reset(seed=0)
    for row in range(rows):
        if row % HORIZON == 0:
            observation, _ = env.reset(seed=row)
        action = random.uniform(-1, 1, 2).astype(np.float32)
        following, reward, terminated, truncated, _ = env.step(action)
        columns.append((observation, action, following, reward, terminated, truncated, row // HORIZON, row % HORIZON))
        observation = following
    types = ("float32",) * 4 + ("bool",) * 2 + ("int32",) * 2
    return TransitionBatch(*(np.array(c, t) for c, t in zip(zip(*columns, strict=True), types, strict=True)))


def one_step_game(rows: int = 400) -> TransitionBatch:
    """Uniform actions, episodes of one step, and a reward that is highest at the action (0.8, -0.8)."""
    random = np.random.default_rng(3)
    observation = random.normal(size=(rows, 4)).astype(np.float32)
    action = random.uniform(-1, 1, (rows, 2)).astype(np.float32)
    reward = -4 * np.abs(action - np.array([0.8, -0.8], np.float32)).sum(1)
    ended, number = np.ones(rows, bool), np.arange(rows, dtype=np.int32)
    return TransitionBatch(
        observation, action, observation[::-1].copy(), reward, ended, ~ended, number, np.zeros_like(number)
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with the artefact of a collector: 300 transitions of each of the first two tasks."""
    store = Store(tmp_path_factory.mktemp("store"))
    about = {"environment": "umaze_goal", "observation_size": 4, "action_size": 2, "horizon": HORIZON}
    with (
        store.create("collect", "few", {}) as out,
        DatasetWriter(out.path / "dataset", **about, collection={}) as writer,
    ):
        for task in envs.get("umaze_goal").tasks("train")[:2]:
            writer.add_task(task.index, random_play(task, 300), parameter=[0.0], label=task.label)
    return store


@pytest.fixture(scope="module")
def trainer(store, embedded_ray):
    """The actor; no CPU is left beside it."""
    actor = remote(store.url, num_cpus=2)
    yield actor
    ray.kill(actor)


def job(algorithm: str, task: int = 0, config: RLlibConfig = TINY) -> Job:
    spec = RLlib("umaze_goal", HORIZON, algorithm, task, config, 7, (Ref("collect", "few"),))
    return Job(spec, f"rllib {algorithm}")


def answer(reference) -> Any:
    """What a call of the actor returns; a call that hangs fails the test."""
    return ray.get(reference, timeout=120)


def in_actor(trainer, function, *arguments) -> Any:
    """What `function(*arguments)` returns in the actor's process, which has RLlib imported."""
    return answer(trainer.__ray_call__.remote(lambda self, *given: function(*given), *arguments))


def test_the_module_is_imported_without_rllib():
    script = "import sys, actors.stages.rllib; sys.exit(any(name.startswith('ray.rllib') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_every_algorithm_trains_and_is_played(trainer, store):
    for algorithm in ALGORITHMS:
        metrics = answer(trainer.run.remote(job(algorithm, task=1)))
        folder = store.fetch(*job(algorithm, task=1).ref)
        (row,) = read_json(folder / "returns.json")
        assert row == {"task": 1, "return": metrics["return"]}
        assert 0 < row["return"] < HORIZON  # every reward is between 0 and 1
        assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "returns.json"]


def test_a_failure_of_rllib_is_one_sentence_that_names_algorithm_and_task(trainer):
    diverging = RLlibConfig(**{**vars(TINY), "learning_rate": 1e30})
    for algorithm, config, words in (
        ("dqn", TINY, "RLlib's dqn failed on task 0: there is no such algorithm here"),
        ("bc", diverging, "RLlib's bc failed on task 0: its policy diverged"),
        ("iql", RLlibConfig(hidden=(-3,)), "RLlib's iql failed on task 0: "),
    ):
        with pytest.raises(RayTaskError) as failure:
            answer(trainer.run.remote(job(algorithm, config=config)))
        cause = failure.value.cause
        assert isinstance(cause, RLlibError)
        assert words in str(cause)
        assert len(str(cause).splitlines()) == 1


def test_cloning_copies_the_average_action_and_the_others_find_the_rewarded_one(trainer):
    def learn(batch, algorithm, config):
        learner = OfflineLearner(algorithm, config, batch, seed=1, task=0)
        for _ in range(config.updates):
            learner.update()
        return learner.act(torch.from_numpy(batch.observation.copy())).mean(0).numpy()

    found = {}
    config = RLlibConfig(updates=200, batch_size=64, hidden=(32, 32), learning_rate=3e-3, cql_weight=0.5, tau=0.05)
    for algorithm in ALGORITHMS:
        found[algorithm] = in_actor(trainer, learn, one_step_game(), algorithm, config) * [1, -1]
    assert np.abs(found["bc"]).max() < 0.2
    assert found["iql"].min() > 0.4
    assert found["cql"].min() > 0.4


def test_the_seed_decides_everything(trainer):
    def actions(batch, algorithm, seed):
        learner = OfflineLearner(algorithm, TINY, batch, seed, task=0)
        for _ in range(3):
            learner.update()
        return learner.act(torch.from_numpy(batch.observation.copy()))

    for algorithm in ALGORITHMS:
        one, again, other = (in_actor(trainer, actions, one_step_game(50), algorithm, seed) for seed in (1, 1, 2))
        assert torch.equal(one, again), algorithm
        assert not torch.allclose(one, other), algorithm


def test_the_policy_is_played_at_its_median(trainer):
    def sampled_and_played(batch, algorithm):
        learner = OfflineLearner(algorithm, TINY, batch, seed=1, task=0)
        with torch.no_grad():
            for parameter in learner.module.parameters():
                parameter.mul_(3)  # far from zero, where a tanh shows
            observation = torch.from_numpy(batch.observation.copy())
            logits = learner.module.forward_inference({"obs": observation})["action_dist_inputs"]
        logits[:, 2:] = -3.0  # logarithm of the standard deviation, which the median does not depend on
        distribution = learner.module.get_inference_action_dist_cls().from_logits(logits)
        samples = torch.stack([distribution.sample() for _ in range(2001)])
        return samples.median(0).values, learner.act(observation)

    for algorithm in ALGORITHMS:
        sampled, played = in_actor(trainer, sampled_and_played, one_step_game(20), algorithm)
        assert played.abs().max() > 0.5, algorithm
        torch.testing.assert_close(played, sampled.clamp(-1, 1), atol=0.02, rtol=0)


def test_a_minibatch_is_what_rllib_makes_of_the_exported_file(trainer, tmp_path):
    def prepared(path, algorithm):
        from ray.data.block import BlockAccessor
        from ray.rllib.core import DEFAULT_MODULE_ID
        from ray.rllib.offline.offline_prelearner import OfflinePreLearner

        config = algorithm_config(algorithm, TINY, seed=0)
        module = config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: spaces(4, 2)})
        prelearner = OfflinePreLearner(config=config, spaces=spaces(4, 2), module_spec=module)
        read: Any = BlockAccessor.for_block(pq.read_table(path)).to_batch_format("numpy")
        made = prelearner(read)
        return {name.split("/")[-1]: np.asarray(column) for name, column in made.items()}

    def sampled(batch, algorithm):
        learner = OfflineLearner(algorithm, TINY, batch, seed=1, task=0)
        return {name: column.numpy() for name, column in learner.sample().items()}

    batch = one_step_game(40)
    export_parquet(batch, tmp_path / "task.parquet")
    for algorithm in ("iql", "cql"):
        whole = in_actor(trainer, prepared, str(tmp_path / "task.parquet"), algorithm)
        minibatch = in_actor(trainer, sampled, batch, algorithm)
        place = [int(np.flatnonzero(whole["rewards"] == reward)[0]) for reward in minibatch["rewards"]]
        assert len(set(place)) > 5
        for name in ("obs", "new_obs", "actions", "rewards", "terminateds", "truncateds"):
            np.testing.assert_array_equal(minibatch[name], whole[name][place], err_msg=name)
            assert minibatch[name].dtype == whole[name].dtype, name
