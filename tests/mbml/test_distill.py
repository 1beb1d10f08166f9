"""The multi-task learner against a step written out in float64, its ablations against each other, and learning."""

from dataclasses import replace

import pytest
import torch

from mbml.distill import DistillConfig, MultiTaskLearner, random_partners, random_subset
from mbml.nets import StackedMLP
from mbml.relabel import RelabelTables, pool_indices
from mbml.rows import RowLayout
from mbml.students import GenerativeStudent
from tests.mbml.small_distill import ABLATIONS, SMALL, K, N, NaiveStep, Z, ablated, make_learner, make_tables, teachers
from tests.mbml.toys import LAYOUT, assert_same_bits, random_rows, seeded

LOSSES = ("loss_q", "loss_kl", "loss_g", "loss_xi")


def networks_of(learner) -> dict[str, StackedMLP]:
    student = learner.student
    assert isinstance(student, GenerativeStudent)
    return {
        "encoder": student.encoder.body,
        "value": student.value_network,
        "decoder": student.decoder,
        "perturbation": student.perturbation,
    }


CASES = {
    "full": {},
    "walker": {"tables": make_tables(dynamics=True)},
    "pooled": {"tables": make_tables(pool=8)},
    "partners": {"partners": 2},
    "scarce": {"tables": make_tables(eligible=0.05)},
    "weighted": {"triplet_weight": 0.3, "margin": 8.0, "kl_weight": 0.5},
    "no_triplet": {"method": "no_triplet"},
    "no_relabelling": {"method": "no_relabelling"},
    "hard_mean": {"method": "no_relabelling", "hard_reduction": "mean"},
    "neither": {"method": "neither"},
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_of_a_step(case):
    learner = make_learner(**CASES[case])
    naive = NaiveStep(learner).run()
    found = learner.update()
    assert set(found) == set(naive.losses) | set(naive.metrics)
    for name, value in (naive.losses | naive.metrics).items():
        assert found[name].item() == pytest.approx(torch.as_tensor(value).item(), rel=2e-4, abs=1e-6), name
    # The gradients of the step are still there: each network has those of its own losses and no others.
    for name, gradients in naive.gradients().items():
        network = networks_of(learner)[name]
        for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            for parameter, wanted in ((weight, gradients[2 * layer]), (bias, gradients[2 * layer + 1])):
                assert parameter.grad is not None
                scale = wanted.abs().max().item() + 1e-8
                torch.testing.assert_close(
                    parameter.grad.double().view_as(wanted), wanted, rtol=1e-3, atol=1e-4 * scale, msg=name
                )


def test_the_cases_have_pairs_of_every_kind():
    naive = NaiveStep(make_learner()).run()
    assert 0 < naive.metrics["valid_pairs"] < 1
    assert naive.losses["loss_triplet"].item() != naive.metrics["loss_triplet_valid"]
    scarce = NaiveStep(make_learner(**CASES["scarce"])).run()
    assert scarce.metrics["eligible_share"] < 0.2


def test_without_any_eligible_row_the_triplet_is_the_margin_and_z_comes_from_own_rows():
    tables = make_tables()
    tables.eligible[:] = False
    found = make_learner(tables=tables).update()
    assert found["loss_triplet"].item() == 2.0
    assert found["valid_pairs"].item() == found["eligible_share"].item() == found["loss_triplet_valid"].item() == 0
    assert all(torch.isfinite(value) for value in found.values())


@pytest.mark.parametrize("method", ABLATIONS)
def test_losses_fall(method):
    learner = make_learner(method, spread=False, learning_rate=1e-2)
    history = [learner.update() for _ in range(600)]
    for name in ("loss_q", "loss_g", "loss_xi"):
        start, end = (sum(h[name].item() for h in part) for part in (history[:25], history[-25:]))
        assert end < 0.7 * start, name


def test_full_model_separates_tasks_by_their_rewards():
    """Rows are alike in all tasks, rewards are 3 i: the triplet loss falls as z learns to read the reward."""
    learner = make_learner(spread=False, learning_rate=5e-3)
    assert isinstance(learner.rows, torch.Tensor)
    assert learner.tables is not None
    for j in range(K):
        learner.rows[j, :, -2] = 3.0 * j
        learner.tables.reward[j] = 3.0 * j
    first = learner.update()["loss_triplet_valid"].item()
    for _ in range(150):
        last = learner.update()["loss_triplet_valid"].item()
    assert first == pytest.approx(2.0, abs=0.1)
    assert last < 0.5 * first


def test_all_methods_start_alike_and_see_the_same_batches():
    learners = [make_learner(method) for method in ABLATIONS]
    for learner in learners[1:]:
        assert_same_bits(learners[0].student.state_dict(), learner.student.state_dict())
    # Deaf to z, the students of all methods have the same losses as long as the batches are the same.
    for learner in learners:
        with torch.no_grad():
            for name in ("value", "decoder", "perturbation"):
                networks_of(learner)[name].weights[0][:, -Z:] = 0
    first = [learner.update() for learner in learners]
    for found in first[1:]:
        for name in ("loss_q", "loss_g", "loss_xi"):
            assert torch.equal(found[name], first[0][name]), name
    for _ in range(3):
        for learner in learners:
            learner.update()
    for learner in learners[1:]:
        assert_same_bits(learners[0].generator.get_state(), learner.generator.get_state())


def test_dropping_the_triplet_changes_nothing_else_in_the_first_step():
    full, without = make_learner("full").update(), make_learner("no_triplet").update()
    for name in (*LOSSES, "eligible_share"):
        assert torch.equal(full[name], without[name]), name


def test_partners_are_others_and_all_of_them_in_the_long_run():
    counts, generator = torch.zeros(K, K), seeded()
    for _ in range(600):
        partners = random_partners(K, 2, generator)
        assert partners.shape == (K, 2)
        for i in range(K):
            chosen = partners[i].tolist()
            assert i not in chosen
            assert len(set(chosen)) == 2
            counts[i, chosen] += 1
    others = counts[~torch.eye(K, dtype=torch.bool)] / 600
    assert (others - 2 / 3).abs().max() < 0.1
    for everyone in (0, K - 1, K + 5):
        partners = random_partners(K, everyone, generator)
        assert [sorted(row) for row in partners.tolist()] == [[j for j in range(K) if j != i] for i in range(K)]


def test_random_subsets_are_uniform_and_inside_the_mask():
    mask = torch.tensor([[True, False, True, True, False], [False, False, True, False, False]])
    counts, generator = torch.zeros(2, 5), seeded()
    for _ in range(900):
        chosen = random_subset(mask, 2, generator)
        assert (chosen <= mask).all()
        assert chosen.sum(1).tolist() == [2, 1]
        counts += chosen
    torch.testing.assert_close(counts[0, mask[0]] / 900, torch.full((3,), 2 / 3), rtol=0, atol=0.06)
    per_row = random_subset(torch.ones(2, 5, dtype=torch.bool), torch.tensor([[4], [0]]), generator)
    assert per_row.sum(1).tolist() == [4, 0]


@pytest.mark.parametrize("method", ["full", "no_triplet"])
def test_relabelling_methods_need_tables(method):
    config = ablated(method)
    with pytest.raises(ValueError, match="relabelling tables"):
        MultiTaskLearner(config, LAYOUT, random_rows(K, N), seeded(), seeded(), teachers=teachers())


@pytest.mark.parametrize("method", ["no_relabelling", "neither"])
def test_methods_without_relabelling_ignore_tables(method):
    config = ablated(method)
    found = [
        MultiTaskLearner(
            config, LAYOUT, random_rows(K, N), seeded(), seeded(1), teachers=teachers(), tables=tables
        ).update()
        for tables in (None, make_tables())
    ]
    assert_same_bits(found[0], found[1])


@pytest.mark.parametrize(
    "switches",
    [{"triplet": "hard_mining", "union_context": True}, {"triplet": "relabelled", "union_context": False}],
)
def test_switches_that_do_not_go_together_are_refused(switches):
    config = replace(SMALL, **switches)
    with pytest.raises(ValueError, match="union"):
        MultiTaskLearner(
            config, LAYOUT, random_rows(K, N), seeded(), seeded(), teachers=teachers(), tables=make_tables()
        )


@pytest.mark.parametrize("method", ["full", "no_relabelling"])
def test_paper_size_makes_a_step(method):
    layout = RowLayout(4, 2)
    config = DistillConfig() if method == "full" else DistillConfig(triplet="hard_mining", union_context=False)
    rows = random_rows(2, 300, layout)
    tables = None
    if method == "full":
        eligible = torch.tensor([[False, True], [True, False]]).unsqueeze(-1).expand(2, 2, 300)
        tables = RelabelTables(pool_indices(2, 300, 0, seeded()), torch.randn(2, 2, 300), eligible.contiguous())
    learner = MultiTaskLearner(config, layout, rows, seeded(), seeded(1), teachers=teachers(layout, 2), tables=tables)
    assert {name: network.sizes for name, network in networks_of(learner).items()} == {
        "encoder": (11, 200, 200, 200, 40),
        "value": (26, *(1024,) * 9, 1),
        "decoder": (28, *(1024,) * 7, 2),
        "perturbation": (26, *(1024,) * 8, 2),
    }
    assert all(torch.isfinite(value) for value in learner.update().values())
