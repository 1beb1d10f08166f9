"""Every loss against plain loops in float64."""

import itertools

import pytest
import torch

from mbml.encoders import Belief, EncoderConfig, make_encoder
from mbml.losses import (
    Triplets,
    distillation_objective,
    full_objective,
    generator_distillation_loss,
    hard_mining_triplet_loss,
    pair_triplet_losses,
    perturbation_distillation_loss,
    posterior_regulariser,
    triplet_loss,
    value_distillation_loss,
)
from tests.mbml.toys import LAYOUT, naive_kl, seeded

ENCODER = make_encoder(LAYOUT, EncoderConfig("product", (4,), 4), seeded())


def gaussian(*shape, seed):
    generator = seeded(seed)
    mean = torch.randn(*shape, generator=generator).double().requires_grad_()
    return Belief(mean, (torch.rand(*shape, generator=generator).double() * 2 + 0.1).requires_grad_())


def at(q, *index):
    return Belief(q.mean[index], q.variance[index])


def triplets(valid, seed=0):
    anchor, positive, negative = (gaussian(3, 2, 4, seed=seed + n) for n in range(3))
    return Triplets(anchor, positive, negative, torch.tensor(valid, dtype=torch.bool))


@pytest.mark.parametrize("margin", [0.0, 2.0, 8.0])
@pytest.mark.parametrize("valid", [[[1, 1], [1, 1], [1, 1]], [[1, 0], [0, 0], [1, 1]], [[0, 0], [0, 0], [0, 0]]])
def test_relabelled_triplet(margin, valid):
    sets = triplets(valid)
    terms = torch.zeros(3, 2).double()
    for i, p in itertools.product(range(3), range(2)):
        pull = naive_kl(at(sets.anchor, i, p), at(sets.positive, i, p))
        push = naive_kl(at(sets.anchor, i, p), at(sets.negative, i, p))
        terms[i, p] = max(valid[i][p] * (pull - push).item() + margin, 0.0)
    per_pair = pair_triplet_losses(ENCODER, sets, margin)
    torch.testing.assert_close(per_pair.detach(), terms)
    assert triplet_loss(per_pair).item() == pytest.approx(sum(terms.flatten().tolist()) / 6)


def test_triplet_gradient_flows_through_all_three_sets_of_valid_pairs_only():
    sets = triplets([[1, 0], [1, 1], [0, 1]])
    triplet_loss(pair_triplet_losses(ENCODER, sets, 50.0)).backward()
    for part in (*sets.anchor, *sets.positive, *sets.negative):
        assert part.grad is not None
        assert (part.grad[sets.valid].abs().sum(-1) > 0).all()
        assert (part.grad[~sets.valid] == 0).all()


def test_an_empty_pair_cannot_spoil_the_loss():
    anchor, positive, negative = (Belief(torch.zeros(2, 1, 4), torch.ones(2, 1, 4)) for _ in range(3))
    overflowing = anchor._replace(mean=torch.full((2, 1, 4), 1e30))
    sets = Triplets(overflowing, positive, negative, torch.zeros(2, 1, dtype=torch.bool))
    assert pair_triplet_losses(ENCODER, sets, 2.0).tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize("contexts", [1, 4])
def test_hard_mining(contexts):
    q = gaussian(3, contexts, 4, seed=7)
    everyone = list(itertools.product(range(3), range(contexts)))
    total = 0.0
    for i, n in everyone:
        distances = {(j, m): naive_kl(at(q, i, n), at(q, j, m)).item() for j, m in everyone}
        hardest_positive = max(d for (j, _), d in distances.items() if j == i)
        hardest_negative = min(d for (j, _), d in distances.items() if j != i)
        total += max(hardest_positive - hardest_negative + 2.0, 0.0)
    assert hard_mining_triplet_loss(ENCODER, q, 2.0).item() == pytest.approx(total)
    mean = hard_mining_triplet_loss(ENCODER, q, 2.0, reduction="mean")
    assert mean.item() == pytest.approx(total / len(everyone))
    mean.backward()
    assert q.mean.grad is not None
    assert torch.isfinite(q.mean.grad).all()
    assert q.mean.grad.abs().sum() > 0


def test_distillation_losses():
    generator = seeded(0)
    student, teacher = (torch.randn(3, 5, 2, generator=generator) for _ in range(2))
    square = [
        [[(student[i, b, d] - teacher[i, b, d]).item() ** 2 for d in range(2)] for b in range(5)] for i in range(3)
    ]
    mean = sum(sum(sum(dims) / 2 for dims in rows) / 5 for rows in square) / 3
    for loss in (generator_distillation_loss, perturbation_distillation_loss):
        assert loss(student, teacher).item() == pytest.approx(mean, rel=1e-5)
    first = sum(sum(dims[0] for dims in rows) / 5 for rows in square) / 3
    assert value_distillation_loss(student[..., :1], teacher[..., :1]).item() == pytest.approx(first, rel=1e-5)


def test_regulariser_is_summed_over_tasks_and_dimensions():
    q = gaussian(3, 4, seed=1)
    prior = Belief(torch.zeros(4).double(), torch.ones(4).double())
    expected = 0.1 * sum(naive_kl(at(q, i), prior).item() for i in range(3))
    assert posterior_regulariser(ENCODER, q, 0.1).item() == pytest.approx(expected)


def test_objectives_are_sums_of_their_terms():
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(2.5)}
    assert distillation_objective(losses).item() == 3.5
    assert full_objective(distillation_objective(losses), torch.tensor(4.0), 0.5).item() == 5.5
