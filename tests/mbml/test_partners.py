"""Partners of tasks in a ring, tables of partners alone, and steps on some of the tasks."""

from __future__ import annotations

import copy
import math
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from mbml import envs
from mbml.distill import MultiTaskLearner
from mbml.encoders import EncoderConfig, Mixture
from mbml.evidence import EvidenceConfig, EvidenceLearner, evidence_loss
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.partners import Ring, evenly, some_tasks
from mbml.relabel import (
    RelabelConfig,
    RelabelTables,
    diagnostics,
    pools_of,
    relabel,
    relabel_with_truth,
    ring_of,
    shapes_of,
    true_rewards,
)
from mbml.rows import FlatRows, Lengths, gather_rows
from mbml.serialise import load_tree, tree_in_place
from mbml.settings import changed
from tests.mbml.small_distill import ablated, teachers
from tests.mbml.toys import LAYOUT, UMAZE, assert_same_bits, clone, random_rows, seeded

TASKS = 9


def ring(partners: int = 4, tasks: int = TASKS) -> Ring:
    return Ring(torch.randperm(tasks, generator=seeded(3)), partners)


@pytest.mark.parametrize(("tasks", "partners"), [(9, 1), (9, 4), (9, 5), (9, 7), (8, 1), (8, 5), (8, 6), (3, 1)])
def test_everybody_has_as_many_partners_and_is_as_many_s_partner(tasks, partners):
    made, everyone = ring(partners, tasks), torch.arange(tasks)
    found = made.partner(everyone, torch.arange(partners).unsqueeze(1))  # [P, K]
    for source in range(tasks):
        own = found[:, source].tolist()
        assert len({*own, source}) == partners + 1
        for label in range(tasks):
            known = bool(made.knows(torch.tensor(label), torch.tensor(source)))
            assert known == (label in own)
            if known:
                assert own[int(made.number(torch.tensor(label), torch.tensor(source)))] == label
    assert Counter(found.flatten().tolist()) == dict.fromkeys(range(tasks), partners)


def test_too_many_partners_are_refused():
    with pytest.raises(ValueError, match="8 partners of 9 tasks; give 1 to 7"):
        ring(8)


def test_the_configuration_says_who_has_partners():
    assert ring_of(17, RelabelConfig(), 0) is None
    assert ring_of(40, RelabelConfig(partners=0), 0) is None
    made = ring_of(40, RelabelConfig(), 0)
    assert made is not None
    assert made.partners == 16
    orders = [ring_of(40, RelabelConfig(), seed) for seed in (0, 0, 1)]
    assert torch.equal(orders[0].order, orders[1].order)  # pyright: ignore[reportOptionalMemberAccess]
    assert not torch.equal(orders[0].order, orders[2].order)  # pyright: ignore[reportOptionalMemberAccess]


def test_windows_reach_every_task_alike_and_hold_partners():
    made, generator, counts = ring(4), seeded(), Counter()
    for _ in range(900):
        window = made.window(4, generator)
        counts.update(window.tolist())
        known = made.knows(window.unsqueeze(1), window)
        assert (known.sum(1) >= 2).all()
    assert all(abs(counts[task] / 900 - 4 / TASKS) < 0.06 for task in range(TASKS))


def test_some_tasks_are_a_subset_and_all_draw_nothing():
    generator = seeded()
    before = generator.get_state()
    assert some_tasks(5, 5, generator) is None
    assert some_tasks(5, 0, generator) is None
    assert torch.equal(generator.get_state(), before)
    counts = Counter()
    for _ in range(600):
        chosen = some_tasks(5, 2, generator)
        assert chosen is not None
        counts[frozenset(chosen.tolist())] += 1
    assert set(map(len, counts)) == {2}
    assert len(counts) == 10
    assert all(abs(count / 600 - 0.1) < 0.05 for count in counts.values())
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(10, 4) == [0, 2, 5, 7]


def many(each: tuple[int, ...] = (6,) * TASKS, layout=LAYOUT) -> FlatRows:
    rows = random_rows(1, sum(each), layout)[0]
    return FlatRows(rows, Lengths(each))


def ensemble(target: Any = "reward") -> Ensemble:
    models = Ensemble(EnsembleConfig(members=3, hidden=(6,)), LAYOUT, TASKS, target, seeded(2))
    with torch.no_grad():
        models.network.weights[-1].mul_(300)
    return models


@pytest.mark.parametrize("each", [(6,) * TASKS, (5, 1, 9, 2, 4, 4, 7, 3, 8)])
def test_tables_of_partners_hold_what_tables_of_everybody_hold(each, tmp_path):
    rows, made = many(each), ring()
    index = pools_of(rows.lengths, 5, seeded(5))
    models: dict[Target, Ensemble] = {"reward": ensemble(), "next_observation": ensemble("next_observation")}
    config = RelabelConfig(reward_threshold=0.5, next_observation_threshold=0.55)
    given = (rows, index, LAYOUT, models, config)
    everybody, some = relabel(*given), relabel(*given, ring=made)
    assert some.reward.shape == (made.partners, sum(map(len, index)))
    assert (everybody.partners, some.partners) == (TASKS - 1, made.partners)
    eligible = 0
    for j in range(TASKS):
        t = torch.arange(len(index[j]))
        context = LAYOUT.context(gather_rows(rows, index[j].unsqueeze(0), torch.tensor([j]))[0])
        for i in range(TASKS):
            who = torch.full_like(t, i), torch.full_like(t, j), t
            if not made.knows(torch.tensor(i), torch.tensor(j)):
                assert not some.may(*who).any()
                continue
            assert torch.equal(some.may(*who), everybody.may(*who))
            eligible += int(some.may(*who).sum())
            found, expected = (tables.relabelled(LAYOUT, context, *who) for tables in (some, everybody))
            torch.testing.assert_close(found, expected)
    assert 0 < eligible < made.partners * sum(map(len, index))
    # The same, written where it will be read.
    known = {name: value for name, value in some.tensors().items() if name in ("index", "sizes", "order")}
    shapes = shapes_of(some.pools, LAYOUT, models, made)
    with tree_in_place(tmp_path / "tables", {n: (tuple(v.shape), v.dtype) for n, v in known.items()} | shapes) as file:
        for name, value in known.items():
            file[name].copy_(value)
        relabel(*given, ring=made, into=file)
    found = load_tree(tmp_path / "tables")
    assert_same_bits({name: found[name] for name in some.tensors()}, some.tensors())
    mapped = RelabelTables(**load_tree(tmp_path / "tables", mapped=True))
    assert torch.equal(mapped.rows_at(torch.zeros(2, 1).long(), torch.tensor([4, 2])),
                       torch.stack([index[4][:1], index[2][:1]]))  # fmt: skip


def test_a_file_is_there_when_all_is_written(tmp_path):
    def stopped():
        with tree_in_place(tmp_path / "t", {"a": ((2,), torch.float32)}) as made:
            made["a"].fill_(1.0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stopped()
    assert not list(tmp_path.iterdir())
    shapes = {"flag": ((3,), torch.bool), "wide": ((2, 2), torch.int64), "real": ((5,), torch.float32)}
    with tree_in_place(tmp_path / "t", shapes) as made:
        made["flag"].copy_(torch.tensor([True, False, True]))
        made["wide"].copy_(torch.arange(4).view(2, 2))
        made["real"].copy_(torch.arange(5.0))
    found = load_tree(tmp_path / "t")
    assert list(found) == list(shapes)
    assert found["flag"].tolist() == [True, False, True]
    assert found["wide"].tolist() == [[0, 1], [2, 3]]
    assert found["real"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_true_rewards_and_diagnostics_of_partners():
    rows, made, family = many(layout=UMAZE), ring(), envs.get("umaze_goal")
    assert family.reward is not None
    tasks, index = family.tasks("train")[:TASKS], [torch.tensor([4, 1])] * TASKS
    everybody = true_rewards(rows, UMAZE, family.reward, tasks, index)  # [K, K, 2]
    some = true_rewards(rows, UMAZE, family.reward, tasks, index, made)
    partners = made.partner(torch.arange(TASKS), torch.arange(made.partners).unsqueeze(1))
    for number in range(made.partners):
        for j in range(TASKS):
            assert torch.equal(some[number, 2 * j : 2 * j + 2], everybody[partners[number, j], j])
    tables = relabel_with_truth(index, some.clone(), made)
    assert tables.eligible.all()
    tables.eligible[1, 3] = False
    tables.reward[2, 4] += 0.5
    found: Any = diagnostics(tables, some)
    assert found["partners"] == partners.tolist()
    assert found["share"][1][1] == 0.5
    assert found["error_all"][2][2] == pytest.approx(0.5 / math.sqrt(2), abs=1e-5)
    assert sum(map(sum, found["error_all"])) == pytest.approx(0.5 / math.sqrt(2), abs=1e-5)


# Steps on some of the tasks

SOME, FEW = 4, 2
ONE = (1,) * SOME
"""Every task has one row, so that batches and contexts are what they are whatever is drawn."""


def subsets(learner: Any, draw: Any) -> dict[frozenset[int], dict[str, Tensor]]:
    """Losses of an update and the gradients that it leaves in the value network, by the tasks that were drawn; all
    from the same weights."""
    start, found = copy.deepcopy(learner.state_dict()), {}
    for seed in range(200):
        learner.load_state_dict(copy.deepcopy(start))
        learner.generator.manual_seed(seed)
        tasks = frozenset(draw(clone(learner.generator)).tolist())
        if tasks not in found:
            losses = learner.update()
            found[tasks] = losses | {"gradient": learner.student.value_network.weights[0].grad.clone()}
    assert set(found) == set(map(frozenset, combinations(range(SOME), FEW)))
    learner.load_state_dict(start)
    return found


def distiller(method: str, encoder: str, same: bool = False, **changes: Any) -> MultiTaskLearner:
    student = {"student.kind": "acting", "student.encoder.kind": encoder}
    config = ablated(method, **student, **changes)
    rows = random_rows(SOME, 1)
    rows = rows[:1].expand(SOME, -1, -1).contiguous() if same else rows
    reward, eligible = torch.randn(SOME, SOME, 1, generator=seeded(9)), ~torch.eye(SOME, dtype=torch.bool).unsqueeze(2)
    tables = RelabelTables(torch.zeros(SOME, 1).long(), reward, eligible) if config.union_context else None
    needed: Any = {"teachers": teachers(tasks=SOME, kind="iql"), "tables": tables}
    learner = MultiTaskLearner(config, LAYOUT, rows, seeded(0), seeded(1), **needed)
    with torch.no_grad():
        learner.student.encoder.body.weights[-1].mul_(300)
    return learner


@pytest.mark.parametrize(
    ("method", "encoder", "terms"),
    [
        ("neither", "mean", ("loss_q", "loss_action", "gradient")),
        ("neither", "product", ("loss_kl",)),
        ("full", "product", ("loss_triplet",)),
    ],
)
def test_the_mean_over_all_subsets_is_the_loss_over_all_tasks(method, encoder, terms):
    whole = distiller(method, encoder, tasks_per_step=0)
    expected = whole.update() | {"gradient": whole.student.value_network.weights[0].grad}
    found = subsets(distiller(method, encoder, tasks_per_step=FEW), lambda g: some_tasks(SOME, FEW, g))
    for term in terms:
        mean = torch.stack([losses[term] for losses in found.values()]).mean(0)
        torch.testing.assert_close(mean, expected[term], rtol=1e-4, atol=1e-6)
        assert len({float(losses[term].sum()) for losses in found.values()}) > 1, "all subsets are alike"


def evidence(rows: Any, **changes: Any) -> EvidenceLearner:
    student = {"student.kind": "acting"}
    config = changed(EvidenceConfig(student=ablated("full").student, batch_size=6, context_size=5), student | changes)
    tasks = len(rows)
    made = Ring(torch.randperm(tasks, generator=seeded(3)), 2)
    reward = torch.randn(2, sum(rows.lengths.each), generator=seeded(4))
    pools = [torch.arange(number) for number in rows.lengths.each]
    tables = RelabelTables.of(pools, reward, torch.rand(reward.shape) < 0.7, None, made.order)
    needed: Any = {"teachers": teachers(tasks=tasks, kind="iql"), "tables": tables, "returns": torch.eye(tasks)}
    return EvidenceLearner(config, LAYOUT, rows, seeded(0), seeded(1), **needed)


def test_the_untold_embedding_weighs_as_much_as_one_of_the_tasks_drawn():
    same = FlatRows(random_rows(1, 1)[0].expand(SOME, -1).contiguous(), Lengths(ONE))
    learner = evidence(same, tasks_per_step=FEW)
    found = subsets(learner, lambda g: some_tasks(SOME, FEW, g))
    student: Any = learner.student
    pair = LAYOUT.pair(same.flat[:1]).expand(SOME + 1, 1, -1)
    with torch.no_grad():
        z = student.encoder.embeddings.unsqueeze(1)
        value = student.value(pair[..., :3], pair[..., 3:], z)
        each = (value - learner.teachers.value(pair)).square().flatten()
    expected = (FEW * each[:SOME].mean() + each[SOME]) / (FEW + 1)
    mean = torch.stack([losses["loss_q"] for losses in found.values()]).mean()
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("method", ["full", "neither", "no_relabelling", "evidence"])
def test_tasks_that_are_not_drawn_are_not_looked_at(method):
    """Their rows, teachers and labels are poison."""
    rows, size = many((4,) * TASKS), 3
    if method == "evidence":
        learner: Any = evidence(rows, tasks_per_step=size)
        chosen = some_tasks(TASKS, size, clone(learner.generator))
    else:
        config, made = ablated(method, **{"student.kind": "acting"}, tasks_per_step=size, partners=1), ring()
        pools = [torch.arange(4)] * TASKS
        reward = torch.randn(made.partners, 4 * TASKS, generator=seeded(4))
        tables = RelabelTables.of(pools, reward, torch.ones(reward.shape, dtype=torch.bool), None, made.order)
        needed: Any = {"teachers": teachers(tasks=TASKS, kind="iql"), "tables": tables}
        learner = MultiTaskLearner(config, LAYOUT, rows, seeded(0), seeded(1), **needed)
        generator = clone(learner.generator)
        chosen = made.window(size, generator) if method == "full" else some_tasks(TASKS, size, generator)
    assert chosen is not None
    others = [task for task in range(TASKS) if task not in chosen.tolist()]
    for task in others:
        rows.flat[4 * task : 4 * task + 4] = torch.nan
        learner.tables.reward[:, 4 * task : 4 * task + 4] = torch.nan
        with torch.no_grad():
            for parameter in learner.teachers.parameters():
                parameter[task] = torch.nan
    losses = learner.update()
    assert all(loss.isfinite().all() for loss in losses.values())
    assert all(p.isfinite().all() for p in learner.student.parameters())
    if method == "evidence":
        gradient = learner.student.encoder.embeddings.grad
        moved = gradient.abs().sum(1) > 0
        assert set(moved.nonzero().flatten().tolist()) == {*chosen.tolist(), TASKS}


def test_partners_of_a_step_are_partners_of_the_tables():
    rows, made = many((4,) * TASKS), ring(4)
    pools = [torch.arange(4)] * TASKS
    labels = torch.randn(4, 4 * TASKS, generator=seeded(4))
    tables = RelabelTables.of(pools, labels, torch.ones(labels.shape, dtype=torch.bool), None, made.order)
    for size, partners in ((4, 2), (4, 0), (0, 3), (0, 0)):
        config = ablated("full", **{"student.kind": "acting"}, tasks_per_step=size, partners=partners)
        needed: Any = {"teachers": teachers(tasks=TASKS, kind="iql"), "tables": tables}
        found = MultiTaskLearner(config, LAYOUT, rows, seeded(0), seeded(1), **needed).update()
        assert found["eligible_share"] == 1.0
        assert found["valid_pairs"] == 1.0


def test_rivals_stand_for_all_other_tasks():
    """The sum in the softmax, estimated from a random subset, is on average the sum over all."""
    anchors, rivals = 5, 2
    config = EncoderConfig(kind="mixture", hidden=(6,), embedding_size=2, anchors=anchors)
    encoder = Mixture(LAYOUT, config, seeded())
    with torch.no_grad():
        encoder.body.weights[-1].mul_(1_000)
    context, label = LAYOUT.context(random_rows(1, 4)[0]), torch.tensor([0, 3, 3, 4])
    valid = torch.tensor([True, True, False, True])
    logits = encoder.read(context)
    for row in range(4):
        one = context[row : row + 1], label[row : row + 1], torch.ones(1)
        estimates = [
            evidence_loss(encoder, *one, torch.tensor(some)).exp() for some in combinations(range(anchors), rivals)
        ]
        expected = (logits[row].logsumexp(0) - logits[row, label[row]]).exp()
        torch.testing.assert_close(torch.stack(estimates).mean(), expected)
    everyone = evidence_loss(encoder, context, label, valid, torch.arange(anchors))
    torch.testing.assert_close(everyone, evidence_loss(encoder, context, label, valid))
