"""Running means: what was added since the last reading, and a state that continues."""

import torch

from mbml.training import RunningMeans


def test_means_since_the_last_reading():
    means = RunningMeans()
    assert means.take() == {}
    for value in (1.0, 2.0, 6.0):
        means.add({"loss": torch.tensor([value, -value])})
    assert means.take()["loss"].tolist() == [3.0, -3.0]
    means.add({"loss": torch.tensor([5.0, 7.0])})
    assert means.take()["loss"].tolist() == [5.0, 7.0]


def test_a_loss_that_not_every_update_has_is_a_mean_of_those_that_have_it():
    means = RunningMeans()
    for number in range(4):
        means.add({"critic": torch.tensor(1.0)} | ({"policy": torch.tensor(float(number))} if number % 2 else {}))
    assert {name: value.item() for name, value in means.take().items()} == {"critic": 1.0, "policy": 2.0}


def test_a_restored_state_continues_where_the_values_are():
    first, second, elsewhere = RunningMeans(), RunningMeans(), RunningMeans()
    first.add({"loss": torch.tensor(2.0)})
    for means in (second, elsewhere):
        means.state = dict(first.state)
    for means in (first, second):
        means.add({"loss": torch.tensor(4.0)})
        assert means.take()["loss"].item() == 3.0
    elsewhere.add({"loss": torch.empty((), device="meta")})
    assert elsewhere.take()["loss"].is_meta
