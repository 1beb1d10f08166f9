"""Tasks of different lengths: draws over each own length, flat tables entry by entry, and that everything learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.fx.experimental._config as fx_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbml import envs
from mbml.baselines.batch_pearl import BatchPEARL, BatchPEARLConfig
from mbml.baselines.contextual_bcq import ContextualBCQ, ContextualBCQConfig
from mbml.baselines.metagenrl import MetaGenRL, MetaGenRLConfig
from mbml.data import Dataset, DatasetWriter, TransitionBatch
from mbml.distill import MultiTaskLearner
from mbml.encoders import EncoderConfig
from mbml.evidence import EvidenceLearner
from mbml.models import Ensemble, EnsembleConfig, EnsembleTraining
from mbml.relabel import (
    RelabelConfig,
    RelabelTables,
    diagnostics,
    pool_indices,
    pools_of,
    relabel,
    relabel_with_truth,
    true_rewards,
)
from mbml.rows import (
    FlatRows,
    Lengths,
    MappedRows,
    gather_rows,
    lengths_of,
    resident,
    rows_of,
    sample_rows,
    scalars_of,
    spread_rows,
)
from mbml.settings import changed
from mbml.teachers import TEACHERS
from mbml.training import Training, batches, run
from tests.mbml import test_evidence
from tests.mbml.meta import MetaGenerator, assert_updates, fused_adam_on_meta
from tests.mbml.small_distill import ABLATIONS, K, ablated, teachers
from tests.mbml.toys import LAYOUT, UMAZE, assert_same_bits, on_disk, random_rows, seeded, small_student, through_disk

__all__ = ["fused_adam_on_meta"]

EACH = (5, 400, 1, 37)
"""Rows of K tasks."""
WHERE = ("mapped", "flat")


def own_rows(each=EACH, layout=LAYOUT) -> list[Tensor]:
    """Rows of every task, whose rewards say which task and which row they are of."""
    parts = [random_rows(1, number, layout, seed=7 + task)[0] for task, number in enumerate(each)]
    for task, part in enumerate(parts):
        part[:, -2] = 1_000 * task + torch.arange(len(part))
    return parts


def mapped(root: Path, parts: list[Tensor], layout=LAYOUT, shard_rows: int = 60) -> MappedRows:
    """The same in files, a task a folder."""
    shards = []
    for task, part in enumerate(parts):
        on_disk(root / str(task), part.unsqueeze(0), layout, (shard_rows,))
        shards.append(Dataset.open(root / str(task)).shards(0))
    return MappedRows(shards)


def made(where: str, root: Path, parts: list[Tensor], layout=LAYOUT) -> FlatRows | MappedRows:
    if where == "mapped":
        return mapped(root, parts, layout)
    return FlatRows(torch.cat(parts), Lengths(tuple(map(len, parts))))


@pytest.mark.parametrize("where", WHERE)
def test_batches_are_of_each_tasks_own_rows(where, tmp_path):
    parts = own_rows()
    rows = made(where, tmp_path, parts)
    assert lengths_of(rows).each == EACH
    chosen = torch.tensor([3, 0, 3])
    for tasks in (None, chosen):
        named = range(K) if tasks is None else tasks.tolist()
        indices = lengths_of(rows).sample(50, seeded(3), tasks)
        expected = torch.stack([parts[task][index] for task, index in zip(named, indices, strict=True)])
        assert torch.equal(gather_rows(rows, indices, tasks), expected)
        assert torch.equal(sample_rows(rows, 50, seeded(3), tasks), expected)
    for task, part in enumerate(parts):
        assert torch.equal(rows_of(rows, task), part)
        assert torch.equal(scalars_of(rows, task), part[:, -2:])


@settings(max_examples=40, deadline=None)
@given(each=st.lists(st.integers(1, 2**40), min_size=2, max_size=5), seed=st.integers(0, 2**31))
def test_row_numbers_are_below_each_tasks_length(each, seed):
    indices = Lengths(tuple(each)).sample(200, seeded(seed))
    assert indices.shape == (len(each), 200)
    assert (indices >= 0).all()
    assert (indices < torch.tensor(each).unsqueeze(1)).all()


def test_every_row_is_equally_likely():
    counts = [
        torch.bincount(row, minlength=n) for row, n in zip(Lengths(EACH).sample(40_000, seeded()), EACH, strict=True)
    ]
    for count, number in zip(counts, EACH, strict=True):
        expected = 40_000 / number
        chi_squared = float(((count - expected) ** 2 / expected).sum())
        assert chi_squared < number + 5 * (2 * number) ** 0.5


def test_equal_lengths_draw_what_they_always_drew():
    expected = torch.randint(9, (3, 20), generator=seeded(4))
    assert torch.equal(Lengths((9, 9, 9)).sample(20, seeded(4)), expected)
    rows = random_rows(3, 9)
    flat = FlatRows(rows.flatten(0, 1), Lengths((9, 9, 9)))
    assert torch.equal(sample_rows(flat, 20, seeded(4)), sample_rows(rows, 20, seeded(4)))


def test_spread_rows_give_every_task_the_same_weight():
    parts = own_rows()
    for count in (16, 1_000):
        found = spread_rows(FlatRows(torch.cat(parts), Lengths(EACH)), count)
        assert found.shape == (K, min(count, max(EACH)), LAYOUT.row_size)
        for task, part in enumerate(parts):
            place = (found[task, :, -2] - 1_000 * task).long()
            assert (place.diff() >= 0).all()
            times = torch.bincount(place, minlength=len(part))
            assert times.max() - times.min() <= 1


def test_rows_for_a_gpu_are_flat_and_take_no_more_than_all_rows():
    parts = own_rows()
    rows = FlatRows(torch.cat(parts), Lengths(EACH))
    assert resident(rows, "cpu") is rows
    there = resident(rows, "meta")
    assert isinstance(there, FlatRows)
    assert there.flat.is_meta
    assert there.flat.shape == rows.flat.shape


def ensemble(target: Any = "reward") -> Ensemble:
    models = Ensemble(EnsembleConfig(members=3, hidden=(6,)), LAYOUT, K, target, seeded(2))
    with torch.no_grad():
        models.network.weights[-1].mul_(300)
    return models


def uneven_tables(pool: int = 0, dynamics: bool = True) -> tuple[RelabelTables, list[Tensor]]:
    parts = own_rows()
    index = pools_of(Lengths(EACH), pool, seeded(5))
    models: dict[Any, Ensemble] = {"reward": ensemble()}
    if dynamics:
        models["next_observation"] = ensemble("next_observation")
    config = RelabelConfig(reward_threshold=0.5, next_observation_threshold=0.5)
    rows = FlatRows(torch.cat(parts), Lengths(EACH))
    return relabel(rows, index, LAYOUT, models, config), [part[own] for part, own in zip(parts, index, strict=True)]


@pytest.mark.parametrize("pool", [0, 20])
def test_every_entry_of_the_tables(pool):
    tables, pooled = uneven_tables(pool)
    assert tables.index.shape == (sum(map(len, pooled)),)
    assert tables.reward.shape == (K, sum(map(len, pooled)))
    model, following = ensemble(), ensemble("next_observation")
    flags = 0
    for j, part in enumerate(pooled):
        pair = LAYOUT.pair(part).expand(K, -1, -1)
        label, spread = model.mean_and_std(pair)
        after, its_spread = following.mean_and_std(pair)
        for i in range(K):
            t = torch.arange(len(part))
            i_, j_ = torch.full_like(t, i), torch.full_like(t, j)
            eligible = (spread[i] < 0.5) & (its_spread[i] < 0.5) & (i != j)
            assert torch.equal(tables.may(i_, j_, t), eligible)
            flags += int(eligible.sum())
            found = tables.relabelled(LAYOUT, LAYOUT.context(part), i_, j_, t)
            torch.testing.assert_close(found, torch.cat([LAYOUT.pair(part), after[i], label[i]], 1))
    assert 0 < flags < (K - 1) * sum(map(len, pooled))


def test_a_task_with_fewer_rows_than_the_pool_has_all_of_them_there():
    assert [pool.tolist() for pool in pools_of(Lengths((3, 2)), 5, seeded())] == [[0, 1, 2], [0, 1]]
    pools = pools_of(Lengths(EACH), 20, seeded())
    assert [len(pool) for pool in pools] == [5, 20, 1, 20]
    assert all((pool.diff() > 0).all() and pool.max() < n for pool, n in zip(pools, EACH, strict=True))
    assert torch.equal(torch.stack(pools_of(Lengths((9, 9)), 4, seeded())), pool_indices(2, 9, 4, seeded()))


def test_flat_tables_survive_a_file_and_say_what_dense_ones_say(tmp_path):
    tables, _ = uneven_tables()
    assert_same_bits(RelabelTables(**through_disk(tmp_path, tables.tensors())).tensors(), tables.tensors())
    found = diagnostics(tables, tables.reward)
    assert found["share"] is not None
    for j, (start, number) in enumerate(zip(tables.pools.starts.tolist(), EACH, strict=True)):
        for i in range(K):
            share = tables.eligible[i, start : start + number].float().mean().item()
            assert found["share"][i][j] == (None if i == j else pytest.approx(share, abs=1e-6))
    assert found["error_all"] == [[0.0] * K] * K


def test_true_rewards_of_uneven_tasks():
    family, parts = envs.get("umaze_goal"), own_rows(layout=UMAZE)
    assert family.reward is not None
    tasks = family.tasks("train")[:K]
    rows = FlatRows(torch.cat(parts), Lengths(EACH))
    truth = true_rewards(rows, UMAZE, family.reward, tasks)
    alone = [true_rewards(part.unsqueeze(0), UMAZE, family.reward, tasks)[:, 0] for part in parts]
    assert torch.equal(truth, torch.cat(alone, 1))
    tables = relabel_with_truth([torch.arange(number) for number in EACH], truth)
    assert torch.equal(tables.reward, truth)
    for task, own in enumerate(tables.eligible.split(EACH, 1)):
        assert [bool(row.any()) for row in own] == [i != task for i in range(K)]
        assert [bool(row.all()) for row in own] == [i != task for i in range(K)]


def _distillation(method: str):
    def make(rows):
        config = ablated(method)
        tables = uneven_tables()[0] if config.union_context or config.triplet == "relabelled" else None
        return MultiTaskLearner(config, LAYOUT, rows, seeded(), seeded(1), teachers=teachers(), tables=tables)

    return make


def _evidence(rows):
    config = changed(test_evidence.SMALL, {"student.standardised": True})
    needed: Any = {"teachers": teachers(), "tables": uneven_tables()[0], "returns": test_evidence.RETURNS}
    return EvidenceLearner(config, LAYOUT, rows, seeded(), seeded(1), **needed)


def _contextual_bcq(rows):
    config = ContextualBCQConfig(small_student(), (8,), context_size=5, batch_size=4, target_candidates=3)
    return ContextualBCQ(config, LAYOUT, rows, seeded(), seeded(1))


def _batch_pearl(rows):
    config = BatchPEARLConfig(EncoderConfig(hidden=(8,), embedding_size=2), (8,), context_size=5, batch_size=6)
    return BatchPEARL(config, LAYOUT, rows, seeded(), seeded(1))


LEARNERS = {
    **{method: _distillation(method) for method in ABLATIONS},
    "evidence": _evidence,
    "contextual_bcq": _contextual_bcq,
    "batch_pearl": _batch_pearl,
}


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
def test_every_multi_task_learner_learns(make, tmp_path):
    found = []
    for where in WHERE:
        learner = make(made(where, tmp_path, own_rows()))
        before = [p.detach().clone() for p in learner.policy.parameters()]
        for _ in range(3):
            assert all(loss.isfinite().all() for loss in learner.update().values())
        assert any(not torch.equal(old, new) for old, new in zip(before, learner.policy.parameters(), strict=True))
        found.append(learner.state_dict())
    assert_same_bits(*found)


@pytest.mark.usefixtures("fused_adam_on_meta")
@pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model, which is a no-op")
def test_flat_rows_and_tables_are_drawn_from_where_they_are():
    """On the stand-in for a GPU: nothing is read back, and nothing comes from the CPU."""
    rows = resident(FlatRows(torch.cat(own_rows()), Lengths(EACH)), "meta")
    needed: Any = {"teachers": teachers().to("meta"), "tables": uneven_tables()[0].to("meta")}
    assert lengths_of(rows).starts.is_meta
    assert needed["tables"].pools.starts.is_meta
    sample_rows(rows, 1, MetaGenerator())  # what is computed once on the device
    needed["tables"].pools.sample(1, MetaGenerator())
    learner = MultiTaskLearner(ablated("full"), LAYOUT, rows, MetaGenerator(), MetaGenerator(), **needed)
    with fx_config.patch(meta_nonzero_assume_all_nonzero=True):  # pyright: ignore[reportAttributeAccessIssue]
        assert_updates(learner)


@pytest.mark.parametrize("kind", TEACHERS)
def test_every_teacher_learns(kind, tmp_path):
    entry = TEACHERS[kind]
    assert entry.config is not None
    config = changed(
        entry.config(), {"hidden": (6, 6), "batch_size": 8} | ({"vae_hidden": (6, 6)} if kind == "bcq" else {})
    )
    learner = entry.make(config, LAYOUT, K, seeded())
    training = Training(learner, batches(mapped(tmp_path, own_rows()), 8, seeded(1)), 4, 2)
    run(training)
    assert [point["step"] for point in training.curve] == [2, 4]


def test_models_and_metagenrl_learn(tmp_path):
    rows, config = mapped(tmp_path, own_rows()), EnsembleConfig(members=2, hidden=(5,), steps=4, batch_size=6)
    training = EnsembleTraining({"reward": config, "next_observation": config}, LAYOUT, rows, range(K), 0)
    run(training)
    assert training.done == 8
    small = MetaGenRLConfig(hidden=(6,), objective_hidden=(6,), lstm=3, segments=3, objective_segments=4)
    for number in (1, 50):
        agent = MetaGenRL(small, LAYOUT, mapped(tmp_path / str(number), own_rows((number,))), seeded())
        assert agent.update()["critic_loss"].isfinite()


def test_a_million_rows_beside_fifty_take_the_memory_of_their_rows(tmp_path):
    """What is held is linear in all rows: 8 bytes each; the vectors stay in their files."""
    big, small = 1_000_000, 50
    root = tmp_path / "set"
    sizes = {"observation_size": 1, "action_size": 1}
    with DatasetWriter(root, environment="logged", horizon=big, collection={}, **sizes) as writer:
        for task, number in enumerate((small, big)):
            path = np.arange(number + 1, dtype=np.float32).reshape(-1, 1)
            flags = np.zeros(number, bool)
            step = np.arange(number, dtype=np.int32)
            batch = TransitionBatch(
                path[:-1], path[1:] * 0, path[1:], path[1:, 0], flags, flags, np.zeros(number, np.int32), step
            )
            writer.add_task(task, batch, parameter=None, label=str(task))
    dataset = Dataset.open(root)
    rows = MappedRows([dataset.shards(task) for task in (0, 1)])
    assert rows.scalars.flat.numel() == 2 * (big + small)
    drawn = sample_rows(rows, 4_000, seeded())[..., 0]
    assert drawn[0].max() == small - 1
    assert drawn[1].max() > 0.99 * big
