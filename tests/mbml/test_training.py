"""The loop: what is due when, means, checks of finiteness, and resuming; on a learner of one weight."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mbml.learner import Learner, NotFinite
from mbml.rows import sample_indices
from mbml.training import Training, averaged, batches, run
from tests.mbml.toys import assert_same_bits, random_rows, seeded, through_disk


@dataclass(frozen=True)
class Nothing:
    pass


class Adding(Learner):
    """Adds what it is given, and a random number, to its weight; the loss is what it was given."""

    config = Nothing()

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.zeros(2))
        self.generator = seeded()

    @torch.no_grad()
    def update(self, value: torch.Tensor):
        self.steps_done += 1
        self.weight += value + torch.rand(2, generator=self.generator)
        return {"loss": value}


def make(steps=25, every=10, values=None, **options):
    """A training whose losses are 1, 2, 3, ... for the first task, and minus those for the second."""
    learner = Adding()

    def draw():
        number = float(learner.steps_done + 1)
        return (torch.tensor([number, -number]) if values is None else torch.tensor(values[learner.steps_done]),)

    return Training(learner, draw, steps, every, **options)


def test_means_are_due_every_so_many_steps_and_at_the_last():
    heard = []

    def on_due(step, losses):
        heard.append((step, losses["loss"].tolist()))
        return [{"step": step}]

    training = make(on_due=on_due)
    run(training)
    assert heard == [(10, [5.5, -5.5]), (20, [15.5, -15.5]), (25, [23.0, -23.0])]
    assert training.curve == [{"step": 10}, {"step": 20}, {"step": 25}]
    assert (training.done, training.total, training.unit) == (25, 25, "steps")


def test_a_point_of_the_curve_is_the_mean_over_tasks_too():
    assert averaged(7, {"loss": torch.tensor([1.0, 4.0]), "share": torch.tensor(0.5)}) == [
        {"step": 7, "loss": 2.5, "share": 0.5}
    ]


def test_snapshots_have_a_period_of_their_own_and_come_before_the_point_of_their_step():
    heard = []
    training = make(
        on_due=lambda step, losses: [{"point": heard.append(("point", step)) or step}],
        snapshot_every=8,
        on_snapshot=lambda step: heard.append(("snapshot", step)),
    )
    run(training)
    assert [step for what, step in heard if what == "snapshot"] == [8, 16, 24, 25]
    assert heard[-2:] == [("snapshot", 25), ("point", 25)]


def test_an_advance_is_short_and_says_the_latest_means():
    training = make(steps=1_000, every=500)
    assert training.advance() == {}
    assert 0 < training.done < 500
    metrics = {}
    while training.done < 500:
        metrics = training.advance()
    assert {name: float(value) for name, value in metrics.items()} == {"loss": 0.0}


@pytest.mark.parametrize(("values", "term"), [([1.0, torch.nan, 1.0], "loss"), ([1e38, 0.0, 0.0], "weight")])
def test_what_is_not_finite_ends_the_training_with_a_sentence_that_names_step_and_term(values, term):
    points = []
    training = make(steps=3, every=3, values=values, on_due=lambda step, losses: points.append(step) or [])
    with torch.no_grad():
        training.learner.weight.fill_(3e38)
    with pytest.raises(NotFinite, match=rf"{term}.* not finite .*3"):
        run(training)
    assert not points


def test_a_snapshot_is_never_made_of_weights_that_are_not_finite():
    snapshots = []
    training = make(3, 3, [1.0, torch.inf, 1.0], snapshot_every=1, on_snapshot=snapshots.append)
    with pytest.raises(NotFinite, match="weights of weight are not finite after 2 updates"):
        run(training)
    assert snapshots == [1]


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_a_resumed_training_is_one_that_never_stopped(rounds, tmp_path):
    options = {"steps": 175, "every": 70}
    whole, resumed = make(**options), make(**options)
    for _ in range(rounds):
        whole.advance()
    resumed.load_state_dict(through_disk(tmp_path, whole.state_dict()))
    run(whole)
    run(resumed)
    assert_same_bits(whole.state_dict(), resumed.state_dict())
    assert [point["step"] for point in resumed.curve] == [70, 140, 175]


def test_batches_are_uniform_rows_of_each_task():
    rows = random_rows(2, 50)
    draw, generator = batches(rows, 6, seeded(3)), seeded(3)
    for _ in range(2):
        (found,) = draw()
        indices = sample_indices(2, 6, 50, generator)
        assert torch.equal(found, torch.stack([rows[task, indices[task]] for task in range(2)]))
