"""From logs to a policy without a simulator: every learner on the way takes an imported dataset as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mbml.data import Dataset
from mbml.distill import MultiTaskLearner
from mbml.logs.importing import import_logs
from mbml.models import EnsembleConfig, EnsembleTraining
from mbml.policy import ContextAgent, ContextPolicy
from mbml.relabel import RelabelConfig, pools_of, relabel
from mbml.rows import MappedRows, RowLayout
from mbml.settings import changed
from mbml.teachers import TEACHERS
from mbml.teaching import Teaching, TeachingConfig
from mbml.training import Training, run
from tests.mbml.logs.fleet import machine, write_csv_folder
from tests.mbml.small_distill import SMALL
from tests.mbml.toys import assert_same_bits, seeded, through_disk

LAYOUT = RowLayout(3, 2)
MACHINES = {"a": machine((30, 20), 1), "b": machine((3,), 2), "c": machine((200, 90, 80), 3)}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> MappedRows:
    root = tmp_path_factory.mktemp("logs")
    (root / "csv").mkdir()
    import_logs(write_csv_folder(root / "csv", MACHINES), root / "set", log=lambda line: None)
    dataset = Dataset.open(root / "set")
    return MappedRows([dataset.shards(index) for index in dataset.task_indices])


def teaching(rows: MappedRows, kind: str) -> Teaching:
    config = TEACHERS[kind].config
    assert config is not None
    sizes = {"hidden": (8, 8), "batch_size": 16} | ({"vae_hidden": (8, 8)} if kind == "bcq" else {})
    schedule = TeachingConfig(iterations=120, evaluation_every=60)
    return Teaching(kind, changed(config(), sizes), schedule, LAYOUT, rows, None, range(3), 0)


@pytest.mark.parametrize("kind", TEACHERS)
def test_without_a_simulator_the_last_teacher_is_kept(kind, rows, tmp_path):
    whole, resumed = teaching(rows, kind), teaching(rows, kind)
    run(whole)
    assert_same_bits(whole.best.state_dict(), whole.learner.teachers().state_dict())
    assert whole.selected == [{"task": task, "iteration": 120} for task in range(3)]
    assert [(point["task"], point["iteration"]) for point in whole.curve] == [
        (t, i) for i in (60, 120) for t in range(3)
    ]
    assert not any("return" in point for point in whole.curve)
    middle = teaching(rows, kind)
    while middle.done < 60:
        middle.advance()
    resumed.load_state_dict(through_disk(tmp_path, middle.state_dict()))
    run(resumed)
    assert_same_bits(resumed.best.state_dict(), whole.best.state_dict())


def test_logs_become_a_policy(rows, tmp_path: Path):
    taught = teaching(rows, "bcq")
    run(taught)
    models = EnsembleTraining({"reward": EnsembleConfig(members=3, hidden=(8,), steps=60)}, LAYOUT, rows, range(3), 0)
    run(models)
    pools = pools_of(rows.lengths, 64, seeded())
    assert [len(pool) for pool in pools] == [50, 3, 64]
    tables = relabel(rows, pools, LAYOUT, models.ensembles, RelabelConfig(reward_threshold=10.0))
    learner = MultiTaskLearner(SMALL, LAYOUT, rows, seeded(), seeded(1), teachers=taught.best, tables=tables)
    training = Training(learner, tuple, 20, 10)
    run(training)
    learner.policy.save(tmp_path / "policy.safetensors")
    agent = ContextAgent(ContextPolicy.load(tmp_path / "policy.safetensors"), seeded(), tasks=5)
    action = agent.act(torch.zeros(5, 3))
    assert action.shape == (5, 2)
    assert np.isfinite(action.numpy()).all()
    assert action.abs().max() <= 1
