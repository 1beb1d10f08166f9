"""Batches that hold other tasks' transitions with a task's own labels."""

import pytest
import torch

from mbml.partners import Ring
from mbml.relabel import RelabelTables
from mbml.rows import FlatRows, Lengths, RowLayout
from mbml.seeding import generator_of
from mbml.sharing import shared_batches

LAYOUT = RowLayout(2, 1)
K, N, BATCH = 4, 30, 40


def world(dynamics: bool, lengths: tuple[int, ...] = (N,) * K):
    """Rows whose observation is (task, number), reward -1; labels that say for whom, whose, and which."""
    rows = []
    for task, length in enumerate(lengths):
        number = torch.arange(float(length))
        own = torch.zeros(length, LAYOUT.row_size)
        own[:, 0], own[:, 1], own[:, 2], own[:, 3], own[:, 4], own[:, 5] = task, number, 0.5, task, number, -1.0
        own[:, 6] = number % 2  # terminated
        rows.append(own)
    index = [torch.arange(0, length, 2) for length in lengths]  # only even rows are pooled
    whose = torch.cat([torch.full((len(i),), float(t)) for t, i in enumerate(index)])
    which = torch.cat([i.float() for i in index])
    label = torch.arange(float(K)).unsqueeze(1)
    reward = 1000 * label + 100 * whose + which
    eligible = (which % 4 == 0).expand(K, -1).clone()
    eligible &= whose != label
    following = torch.stack([label.expand_as(reward), reward], -1) if dynamics else None
    tables = RelabelTables.of(index, reward, eligible, following)
    return FlatRows(torch.cat(rows), Lengths(lengths)), tables


@pytest.mark.parametrize("dynamics", [False, True])
@pytest.mark.parametrize("lengths", [(N,) * K, (10, 30, 50, 6)])
def test_every_row_is_ones_own_or_a_certain_one_of_another_with_ones_labels(dynamics, lengths):
    rows, tables = world(dynamics, lengths)
    tasks, share = [1, 3], 0.3
    draw = shared_batches(rows, tasks, LAYOUT, tables, BATCH, share, generator_of(0, "sharing"))
    seen: list[set[tuple[int, int]]] = [set(), set()]
    for _ in range(200):
        (batch,) = draw()
        assert batch.shape == (2, BATCH, LAYOUT.row_size)
        for place, task in enumerate(tasks):
            foreign = [row for row in batch[place].tolist() if row[0] != task]
            own = [row for row in batch[place].tolist() if row[0] == task]
            assert 0 < len(foreign) <= round(share * BATCH)
            assert all(row[2:] == [0.5, task, row[1], -1.0, row[1] % 2] for row in own)
            for source, number, action, *following, reward, terminated in foreign:
                label = 1000.0 * task + 100 * source + number
                assert number % 4 == 0
                assert (action, reward, terminated) == (0.5, label, 0.0)
                assert following == ([task, label] if dynamics else [source, number])
                seen[place].add((int(source), int(number)))
    for place, task in enumerate(tasks):  # all that may come does
        others = [t for t in range(K) if t != task]
        assert seen[place] == {(t, n) for t in others for n in range(0, lengths[t], 4)}


def test_of_many_tasks_the_partners_share():
    tasks, partners = 9, 4
    rows = torch.zeros(tasks, N, LAYOUT.row_size)
    rows[..., 0] = torch.arange(float(tasks)).unsqueeze(1)
    index, order = [torch.arange(N)] * tasks, torch.randperm(tasks, generator=generator_of(0, "order"))
    ring = Ring(order, partners)
    source = torch.arange(tasks).repeat_interleave(N)
    reward = 100.0 * ring.partner(source, torch.arange(partners).unsqueeze(1)) + source
    tables = RelabelTables.of(index, reward, torch.ones_like(reward, dtype=torch.bool), None, order)
    draw = shared_batches(rows, range(tasks), LAYOUT, tables, BATCH, 1.0, generator_of(0, "sharing"))
    batches = torch.cat([draw()[0] for _ in range(50)], 1)
    for task in range(tasks):
        seen = {(row[0], row[5]) for row in batches[task].tolist()}
        wanted = {other for other in range(tasks) if ring.knows(torch.tensor(task), torch.tensor(other))}
        assert len(wanted) == partners
        assert seen == {(float(other), 100.0 * task + other) for other in wanted}


def test_the_share_is_met_where_everything_is_certain():
    rows, tables = world(False)
    tables.eligible.fill_(True)
    (batch,) = shared_batches(rows, [0], LAYOUT, tables, BATCH, 0.5, generator_of(0, "sharing"))()
    assert (batch[0, :, 0] != 0).sum() == BATCH // 2
    assert {*batch[0, :, 0].tolist()} <= {0.0, 1.0, 2.0, 3.0}
