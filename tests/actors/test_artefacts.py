"""What one stage leaves is what the next one reads: order of tasks, equal lengths, checkpoints."""

import math

import numpy as np
import pytest
import torch

from actors.artefacts import (
    ArtefactError,
    env_maker,
    layout_of,
    load_ensemble,
    load_rows,
    load_teachers,
    read_json,
    read_lines,
    tasks_of,
    truth_table,
    write_json,
    write_lines,
)
from mbml import envs
from mbml.data import DatasetWriter, TransitionBatch
from mbml.learner import NotFinite
from mbml.models import Ensemble, EnsembleConfig
from mbml.rows import scalars_of
from mbml.seeding import generator_of
from mbml.serialise import save_tree
from mbml.teachers.bcq import BCQ, BCQConfig

UMAZE = layout_of("umaze_goal")


def write_dataset(folder, lengths):
    """Batches of one long episode per task: `lengths` maps task to number of rows; reward is the task's number."""
    with DatasetWriter(
        folder / "dataset", environment="umaze_goal", observation_size=4, action_size=2, horizon=100, collection={}
    ) as writer:
        for task, rows in lengths.items():
            path = np.arange((rows + 1) * 4, dtype=np.float32).reshape(-1, 4)
            batch = TransitionBatch(
                observation=path[:-1],
                action=np.zeros((rows, 2), np.float32),
                next_observation=path[1:],
                reward=np.full(rows, task, np.float32),
                terminated=np.zeros(rows, bool),
                truncated=np.arange(rows) == rows - 1,
                episode=np.zeros(rows, np.int32),
                step=np.arange(rows, dtype=np.int32),
            )
            writer.add_task(task, batch, parameter=[0.0], label=str(task))
    return folder


def test_rows_come_in_the_order_of_the_tasks_asked_for_from_several_collectors(tmp_path):
    folders = [write_dataset(tmp_path / "b", {2: 6, 3: 6}), write_dataset(tmp_path / "a", {0: 6, 1: 6})]
    rows = load_rows(folders, [3, 0, 2])
    assert rows.lengths.each == (6, 6, 6)
    assert [float(scalars_of(rows, task)[0, 0]) for task in range(3)] == [3.0, 0.0, 2.0]


def test_teachers_of_several_stacks_are_joined_in_the_order_of_their_tasks(tmp_path):
    made = {}
    for name, tasks in (("late", [2, 3]), ("early", [0, 1])):
        config = BCQConfig(hidden=(5, 4), vae_hidden=(6, 3))
        teachers = BCQ(config, UMAZE, 2, generator_of(name)).teachers()
        save_tree(tmp_path / name / "teachers.safetensors", {"tasks": tasks, "teachers": teachers.state_dict()})
        made[name] = teachers
    order, joined = load_teachers([tmp_path / "late", tmp_path / "early"])
    assert order == [0, 1, 2, 3]
    pair = torch.randn(4, 7, UMAZE.pair_size)
    expected = torch.cat([made["early"].value(pair[:2]), made["late"].value(pair[2:])])
    torch.testing.assert_close(joined.value(pair), expected)


def test_ensembles_of_several_stacks_are_joined_in_the_order_of_their_tasks(tmp_path):
    config = EnsembleConfig(members=3, hidden=(5,))
    made = {}
    for name, tasks in (("late", [2]), ("early", [0, 1])):
        made[name] = Ensemble(config, UMAZE, len(tasks), "reward", generator_of(name))
        save_tree(tmp_path / name / "models.safetensors", {"tasks": tasks, "reward": made[name].network.save()})
    joined = load_ensemble([tmp_path / "late", tmp_path / "early"], config, UMAZE, "reward")
    pair = torch.randn(3, 7, UMAZE.pair_size)
    means, stds = joined.mean_and_std(pair)
    for part, stack in ((slice(0, 2), "early"), (slice(2, 3), "late")):
        mean, std = made[stack].mean_and_std(pair[part])
        torch.testing.assert_close(means[part], mean)
        torch.testing.assert_close(stds[part], std)


def test_the_truth_table_is_the_reward_of_every_task_and_none_where_it_is_not_observed():
    rows = torch.rand(2, 5, UMAZE.row_size)
    unseen = tasks_of("umaze_goal", "test", [3])
    table = truth_table("umaze_goal", tasks_of("umaze_goal", "train", [4, 1]) + unseen, rows)
    assert table is not None
    assert table.shape == (3, 2, 5)
    goal = envs.get("umaze_goal").tasks("train")[1].vector
    place = UMAZE.split(rows).next_observation[0, 3, :2].numpy()
    assert table[1, 0, 3].item() == pytest.approx(np.exp(-np.linalg.norm(place - goal)), rel=1e-5)
    layout = layout_of("ant_dir")
    assert truth_table("ant_dir", tasks_of("ant_dir", "train", [0, 1]), torch.rand(2, 3, layout.row_size)) is None


def test_environments_are_built_task_by_task():
    stack = env_maker("umaze_goal", [3, 7], 12)(2)
    family = envs.get("umaze_goal")
    assert len(stack) == 4
    for env, task in zip(stack.envs, (3, 3, 7, 7), strict=True):
        alone = family.environment(family.tasks("train")[task])
        rewards = []
        for same in (env, alone):
            same.reset(seed=0)
            rewards.append(same.step(np.ones(2))[1])
        assert rewards[0] == rewards[1]


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(NotFinite, match=r"scores\.json .*not finite"):
        write_json(tmp_path / "scores.json", {"a": [1.0, math.nan]})
    with pytest.raises(NotFinite, match=r"curve\.jsonl .*not finite"):
        write_lines(tmp_path / "curve.jsonl", [{"loss": math.inf}])
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_missing_file_of_an_artefact_is_named(tmp_path):
    (tmp_path / "half.json").write_text('{"step": ')
    (tmp_path / "half.jsonl").write_text('{"step": 1}\n{"st')
    for read, name in ((read_json, "half.json"), (read_lines, "half.jsonl"), (read_json, "none.json")):
        with pytest.raises(ArtefactError, match=name):
            read(tmp_path / name)
