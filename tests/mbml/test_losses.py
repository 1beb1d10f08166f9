"""Every loss against plain loops in float64."""

import itertools

import pytest
import torch

from mbml.context import Gaussian
from mbml.losses import (
    action_distillation_loss,
    hard_mining_triplet_loss,
    posterior_regulariser,
    relabelled_triplet_loss,
    value_distillation_loss,
)
from tests.mbml.toys import naive_kl, seeded


def gaussian(*shape, seed):
    generator = seeded(seed)
    mean = torch.randn(*shape, generator=generator).double().requires_grad_()
    return Gaussian(mean, (torch.rand(*shape, generator=generator).double() * 2 + 0.1).requires_grad_())


def at(q, *index):
    return Gaussian(q.mean[index], q.variance[index])


def triplet_sets(seed=0):
    return tuple(gaussian(3, 2, 4, seed=seed + n) for n in range(3))


@pytest.mark.parametrize("margin", [0.0, 2.0, 8.0])
@pytest.mark.parametrize("valid", [[[1, 1], [1, 1], [1, 1]], [[1, 0], [0, 0], [1, 1]], [[0, 0], [0, 0], [0, 0]]])
def test_relabelled_triplet(margin, valid):
    anchor, positive, negative = triplet_sets()
    mask = torch.tensor(valid, dtype=torch.bool)
    terms = {}
    for i, p in itertools.product(range(3), range(2)):
        pull = naive_kl(at(anchor, i, p), at(positive, i, p))
        push = naive_kl(at(anchor, i, p), at(negative, i, p))
        terms[i, p] = max(valid[i][p] * (pull - push).item() + margin, 0.0)
    result = relabelled_triplet_loss(anchor, positive, negative, mask, margin)
    assert result.loss.item() == pytest.approx(sum(terms.values()) / 6)
    kept = [value for (i, p), value in terms.items() if valid[i][p]]
    assert result.loss_valid.item() == pytest.approx(sum(kept) / max(len(kept), 1))
    assert result.valid_share.item() == pytest.approx(len(kept) / 6)


def test_triplet_gradient_flows_through_all_three_sets_of_valid_pairs_only():
    anchor, positive, negative = triplet_sets()
    valid = torch.tensor([[True, False], [True, True], [False, True]])
    relabelled_triplet_loss(anchor, positive, negative, valid, 50.0).loss.backward()
    for part in (*anchor, *positive, *negative):
        assert part.grad is not None
        assert (part.grad[valid].abs().sum(-1) > 0).all()
        assert (part.grad[~valid] == 0).all()


def test_an_empty_pair_cannot_spoil_the_loss():
    anchor, positive, negative = (Gaussian(torch.zeros(2, 1, 4), torch.ones(2, 1, 4)) for _ in range(3))
    overflowing = torch.full((2, 1, 4), 1e30, requires_grad=True)
    valid = torch.tensor([[False], [False]])
    result = relabelled_triplet_loss(Gaussian(overflowing, anchor.variance), positive, negative, valid, 2.0)
    assert result.loss.item() == 2.0


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
    assert hard_mining_triplet_loss(q, 2.0).item() == pytest.approx(total)
    assert hard_mining_triplet_loss(q, 2.0, reduction="mean").item() == pytest.approx(total / len(everyone))
    hard_mining_triplet_loss(q, 2.0).backward()
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
    assert action_distillation_loss(student, teacher).item() == pytest.approx(mean, rel=1e-5)
    first = sum(sum(dims[0] for dims in rows) / 5 for rows in square) / 3
    assert value_distillation_loss(student[..., :1], teacher[..., :1]).item() == pytest.approx(first, rel=1e-5)


def test_regulariser_is_summed_over_tasks_and_dimensions():
    q = gaussian(3, 4, seed=1)
    prior = Gaussian(torch.zeros(4).double(), torch.ones(4).double())
    expected = 0.1 * sum(naive_kl(at(q, i), prior).item() for i in range(3))
    assert posterior_regulariser(q, 0.1).item() == pytest.approx(expected)
