"""MetaGenRL on a small AntDir batch, as a job: what it leaves, and that an interrupted job continues."""

import numpy as np
import pytest
import torch

from actors.artefacts import env_maker, layout_of, read_lines
from actors.host import Host
from actors.stage import Job, Ref
from actors.stages.metagenrl import MetaGenRL
from actors.store import Store
from mbml import envs
from mbml.baselines.metagenrl import MetaGenRLConfig, make_policy
from mbml.data import DatasetWriter, TransitionBatch
from mbml.evaluate import evaluate_actor
from mbml.seeding import seed_of
from mbml.serialise import load_tree

ENVIRONMENT, HORIZON, TASK = "ant_dir", 8, 2
CONFIG = MetaGenRLConfig(
    hidden=(8, 8),
    objective_hidden=(4, 4),
    lstm=4,
    steps=12,
    evaluation_every=5,
    segments=4,
    objective_segments=4,
    segment_length=6,
)


def random_batch(task, episodes=5):
    """Episodes of uniformly random actions in the true environment, all cut by the horizon or by a fall."""
    env, generator = envs.get(ENVIRONMENT).environment(task, HORIZON), np.random.default_rng(0)
    rows = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        for step in range(HORIZON):
            action = generator.uniform(-1, 1, 8).astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, following, reward, terminated, truncated, episode, step))
            observation = following
            if terminated:
                break
    kinds = (*(np.float32,) * 4, bool, bool, np.int32, np.int32)
    return TransitionBatch(*(np.array(c, dtype=kind) for c, kind in zip(zip(*rows, strict=True), kinds, strict=True)))


@pytest.fixture
def host(tmp_path, threads):
    task = envs.get(ENVIRONMENT).tasks("train")[TASK]
    layout = layout_of(ENVIRONMENT)
    with (
        Store(tmp_path).create("collect", "rows", {}) as out,
        DatasetWriter(
            out.path / "dataset",
            environment=ENVIRONMENT,
            observation_size=layout.observation_size,
            action_size=layout.action_size,
            horizon=HORIZON,
            collection={},
        ) as writer,
    ):
        writer.add_task(TASK, random_batch(task), parameter=task.vector.tolist(), label=task.label)
    return Host(str(tmp_path))


def job(seed=3):
    spec = MetaGenRL(ENVIRONMENT, HORIZON, TASK, CONFIG, seed, (Ref("collect", "rows"),))  # pyright: ignore
    return Job(spec, "metagenrl")


def test_it_leaves_a_curve_and_the_policy_whose_return_is_its_last_point(host):
    metrics = host.run(job())
    folder = host.store.fetch(*job().ref)
    assert {p.name for p in folder.iterdir()} == {"curves.jsonl", "policy.safetensors", "manifest.json"}
    curve = read_lines(folder / "curves.jsonl")
    assert [(row["task"], row["step"]) for row in curve] == [(TASK, 5), (TASK, 10), (TASK, 12)]
    assert all(set(row) == {"task", "step", "return", "critic_loss", "policy_loss", "objective_loss"} for row in curve)
    assert metrics["return"] == curve[-1]["return"]

    left = load_tree(folder / "policy.safetensors")
    policy = make_policy(layout_of(ENVIRONMENT), left["policy"]["hidden"], torch.Generator())
    policy.load_state_dict(left["policy"]["weights"])
    assert left["tasks"] == [TASK]
    stack = env_maker(ENVIRONMENT, [TASK], HORIZON)(3)
    seeds = [seed_of(3, "metagenrl", "evaluation", TASK, 12, copy) for copy in range(3)]
    with torch.no_grad():
        assert evaluate_actor(policy, stack, 1, seeds).mean() == pytest.approx(metrics["return"], rel=1e-6)


def test_an_interrupted_job_continues_where_it_was(host, tmp_path):
    whole = host.run(job())["return"]
    curve = (host.store.fetch(*job().ref) / "curves.jsonl").read_bytes()
    again, calls = Host(str(tmp_path / "other"), checkpoint_seconds=0.0), []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "collect").symlink_to(tmp_path / "collect")

    def interrupt(out):
        calls.append(out)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again.run(job(), watch=interrupt)
    assert again.run(job(), watch=interrupt)["return"] == whole
    assert (again.store.fetch(*job().ref) / "curves.jsonl").read_bytes() == curve
    assert len(calls) == 4  # the second of three rounds was made twice: its checkpoint had not been written
