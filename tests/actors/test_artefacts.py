"""What one stage leaves is what the next one reads: order of tasks, equal lengths, checkpoints."""

import math

import numpy as np
import pytest
import torch

from actors.artefacts import (
    ArtefactError,
    env_maker,
    layout_of,
    load_models,
    load_returns,
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
from mbml.evidence import best_teachers, blind_teacher
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
    folders = [tmp_path / "late", tmp_path / "early"]
    joined = load_teachers(folders, range(4))
    pair = torch.randn(4, 7, UMAZE.pair_size)
    expected = torch.cat([made["early"].value(pair[:2]), made["late"].value(pair[2:])])
    torch.testing.assert_close(joined.value(pair), expected)
    torch.testing.assert_close(load_teachers(folders, [3, 0]).value(pair[[3, 0]]), expected[[3, 0]])
    with pytest.raises(ArtefactError, match=r"cannot serve for tasks \[4\]"):
        load_teachers(folders, [0, 4])


def test_ensembles_of_several_stacks_are_joined_in_the_order_of_their_tasks(tmp_path):
    config = EnsembleConfig(members=3, hidden=(5,))
    made = {}
    for name, tasks in (("late", [2]), ("early", [0, 1])):
        made[name] = Ensemble(config, UMAZE, len(tasks), "reward", generator_of(name))
        save_tree(tmp_path / name / "models.safetensors", {"tasks": tasks, "reward": made[name].network.save()})
    folders = [tmp_path / "late", tmp_path / "early"]
    joined = load_models(folders, {"reward": config}, UMAZE, range(3))["reward"]
    pair = torch.randn(3, 7, UMAZE.pair_size)
    means, stds = joined.mean_and_std(pair)
    for part, stack in ((slice(0, 2), "early"), (slice(2, 3), "late")):
        mean, std = made[stack].mean_and_std(pair[part])
        torch.testing.assert_close(means[part], mean)
        torch.testing.assert_close(stds[part], std)
    some = load_models(folders, {"reward": config}, UMAZE, [2, 0])["reward"].mean_and_std(pair[[2, 0]])
    torch.testing.assert_close(some, (means[[2, 0]], stds[[2, 0]]))


def test_returns_of_some_teachers_on_some_tasks(tmp_path):
    """Of tasks 5, 7 and 9: all against all on two of them; or one candidate everywhere, and everyone on its own."""
    write_json(tmp_path / "references.json", {"train": {"task": [9, 5], "teachers": [[1.0, 2.0], [3.0, 4.0]]}})
    found = load_returns(tmp_path, [5, 7, 9])
    nan = math.nan
    expected = [[4.0, nan, 3.0], [nan, nan, nan], [2.0, nan, 1.0]]
    np.testing.assert_array_equal(found, expected)
    assert blind_teacher(found) == 0
    assert best_teachers(found).tolist() == [0, 1, 0]
    table = {"task": [5, 7, 9], "candidates": [7], "teachers": [[1.0, 2.0, 3.0]], "own": [9.0, 2.0, 0.0]}
    write_json(tmp_path / "references.json", {"train": table})
    found = load_returns(tmp_path, [5, 7, 9])
    np.testing.assert_array_equal(found, [[9.0, nan, nan], [1.0, 2.0, 3.0], [nan, nan, 0.0]])
    assert blind_teacher(found) == 1, "what is best on its own task alone is not the best on average"
    assert best_teachers(found).tolist() == [0, 1, 1]


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
