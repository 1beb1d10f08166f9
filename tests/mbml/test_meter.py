"""Running means: what was added since the last reading, and a state that continues."""

import torch

from mbml.meter import RunningMeans


def test_means_since_the_last_reading():
    means = RunningMeans()
    assert means.take() == {}
    for value in (1.0, 2.0, 6.0):
        means.add({"loss": torch.tensor([value, -value])})
    assert means.take()["loss"].tolist() == [3.0, -3.0]
    means.add({"loss": torch.tensor([5.0, 7.0])})
    assert means.take()["loss"].tolist() == [5.0, 7.0]


def test_a_restored_state_continues():
    first, second = RunningMeans(), RunningMeans()
    first.add({"loss": torch.tensor(2.0)})
    second.load_state_dict(first.state_dict())
    for means in (first, second):
        means.add({"loss": torch.tensor(4.0)})
        assert means.take()["loss"].item() == 3.0
