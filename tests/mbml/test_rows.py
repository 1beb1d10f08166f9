"""Rows in files against the same rows in one tensor: every batch, every learner, and that the files are not copied."""

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbml import envs
from mbml.baselines.batch_pearl import BatchPEARL, BatchPEARLConfig
from mbml.baselines.contextual_bcq import ContextualBCQ, ContextualBCQConfig
from mbml.baselines.metagenrl import MetaGenRL, MetaGenRLConfig
from mbml.distill import MultiTaskLearner
from mbml.encoders import EncoderConfig
from mbml.models import Ensemble, EnsembleConfig
from mbml.relabel import RelabelConfig, pool_indices, relabel, true_rewards
from mbml.rows import RowLayout, gather_rows, resident, sample_indices, scalars_of
from tests.mbml.small_distill import SMALL, K, N, make_tables, teachers
from tests.mbml.toys import LAYOUT, UMAZE, assert_same_bits, on_disk, random_rows, seeded

# Torch says once in a process that it cannot make tensors read-only.
pytestmark = pytest.mark.filterwarnings("error:The given NumPy array is not writable")


@settings(max_examples=25, deadline=None)
@given(
    tasks=st.integers(1, 4),
    number=st.integers(1, 40),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    shard_rows=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    count=st.integers(0, 30),
    seed=st.integers(0, 2**31),
)
def test_a_batch_has_the_bits_of_the_dense_rows(tmp_path_factory, tasks, number, sizes, shard_rows, count, seed):
    layout, root = RowLayout(*sizes), tmp_path_factory.mktemp("rows")
    rows = random_rows(tasks, number, layout, seed)
    mapped = on_disk(root, rows, layout, shard_rows)
    assert (len(mapped), mapped.lengths.each) == (tasks, (number,) * tasks)
    assert torch.equal(gather_rows(mapped, torch.arange(number).repeat(tasks, 1)), rows)

    indices = sample_indices(tasks, count, number, seeded(seed))
    assert torch.equal(gather_rows(mapped, indices), gather_rows(rows, indices))
    chosen = torch.randint(tasks, (5,), generator=seeded(seed))  # some tasks twice, some not at all
    indices = sample_indices(5, count, number, seeded(seed + 1))
    expected = torch.stack([rows[task, index] for task, index in zip(chosen, indices, strict=True)])
    assert torch.equal(gather_rows(mapped, indices, chosen), expected)
    assert torch.equal(gather_rows(rows, indices, chosen), expected)
    for task in range(tasks):
        assert torch.equal(scalars_of(mapped, task), scalars_of(rows, task))


def test_rows_become_dense_for_a_gpu_alone(tmp_path: Path):
    rows = random_rows(2, 50)
    mapped = on_disk(tmp_path, rows, shard_rows=(20, 50))
    assert resident(mapped, "cpu") is mapped
    there = resident(mapped, "meta")  # any device that is no CPU
    assert isinstance(there, torch.Tensor)
    assert (there.shape, there.is_meta) == (rows.shape, True)


def test_vectors_stay_in_the_file(tmp_path: Path):
    rows = random_rows(2, 50)
    rows[1, 7, 3], rows[1, 7, -2] = 123.25, 321.75  # first number of an action, and the reward
    mapped = on_disk(tmp_path, rows)
    file = tmp_path / "task=001/part-0000.arrow"
    content = file.read_bytes()
    for old, new in ((123.25, -123.25), (321.75, -321.75)):
        assert content.count(struct.pack("f", old)) == 1
        content = content.replace(struct.pack("f", old), struct.pack("f", new))
    with file.open("r+b") as same:
        same.write(content)
    batch = LAYOUT.split(gather_rows(mapped, torch.tensor([[7], [7]])))
    assert batch.action[1, 0, 0] == -123.25
    assert batch.reward[1, 0, 0] == 321.75


def test_a_batch_is_the_callers_own(tmp_path: Path):
    mapped, indices = on_disk(tmp_path, random_rows(2, 9), shard_rows=(9, 4)), torch.arange(9).repeat(2, 1)
    gather_rows(mapped, indices).zero_()
    assert torch.equal(gather_rows(mapped, indices), random_rows(2, 9))


def distillation(rows, pool):
    return MultiTaskLearner(SMALL, LAYOUT, rows, seeded(), seeded(1), teachers=teachers(), tables=make_tables(pool))


def contextual_bcq(rows):
    config = ContextualBCQConfig(student=SMALL.student, vae_encoder_hidden=(8,), context_size=5, batch_size=6)
    return ContextualBCQ(config, LAYOUT, rows, seeded(), seeded(1))


def batch_pearl(rows):
    config = BatchPEARLConfig(
        EncoderConfig(hidden=(8,), embedding_size=2), (9,), context_size=5, batch_size=6, tasks_per_step=K + 1
    )
    return BatchPEARL(config, LAYOUT, rows, seeded(), seeded(1))


def metagenrl(rows):
    config = MetaGenRLConfig(hidden=(6,), objective_hidden=(6,), lstm=3, segments=3, objective_segments=4)
    return MetaGenRL(config, LAYOUT, rows, seeded())


@pytest.mark.parametrize(
    ("make", "tasks"),
    [
        (lambda rows: distillation(rows, N), K),
        (lambda rows: distillation(rows, N - 4), K),
        (contextual_bcq, K),
        (batch_pearl, K),
        (metagenrl, 1),
    ],
    ids=["distillation", "distillation from a pool", "contextual BCQ", "batch PEARL", "MetaGenRL"],
)
def test_a_learner_does_the_same_on_either(make, tasks, tmp_path):
    rows = random_rows(tasks, N)
    dense, mapped = make(rows), make(on_disk(tmp_path, rows, shard_rows=(N, 5)))
    for _ in range(3):
        assert_same_bits(dense.update(), mapped.update())
    assert_same_bits(dense.state_dict(), mapped.state_dict())


def test_tables_are_the_same_on_either(tmp_path: Path):
    rows, distribution = random_rows(3, 30, UMAZE), envs.get("umaze_goal")
    mapped, index = on_disk(tmp_path, rows, UMAZE, (30, 7)), pool_indices(3, 30, 20, seeded())
    model = Ensemble(EnsembleConfig(members=3, hidden=(6,)), UMAZE, 3, "reward", seeded())
    dense, found = (relabel(r, index, UMAZE, {"reward": model}, RelabelConfig()).tensors() for r in (rows, mapped))
    assert_same_bits(dense, found)
    assert distribution.reward is not None
    tasks = distribution.tasks("train")[:3]
    for pool in (index, None):
        truths = [true_rewards(r, UMAZE, distribution.reward, tasks, pool) for r in (rows, mapped)]
        assert torch.equal(*truths)
