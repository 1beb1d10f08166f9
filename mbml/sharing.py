"""Batches in which other tasks' transitions stand with a task's own labels, so that its teacher learns from more than
its own batch (data sharing: Kalashnikov et al. 2021; Yu et al. 2021)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mbml.relabel import RelabelTables
from mbml.rows import RowLayout, Rows, gather_rows, sample_rows

_SOURCES = 4
"""Other tasks at most that the rows of one batch come from: each costs a gather."""


def shared_batches(
    rows: Rows,
    tasks: Sequence[int],
    layout: RowLayout,
    tables: RelabelTables,
    batch_size: int,
    share: float,
    generator: torch.Generator,
) -> Callable[[], tuple[Tensor]]:
    """A function that draws rows `[T, batch_size, row]` of `tasks`, of the K that `rows` and `tables` have.

    A `share` of them are transitions of other tasks, drawn uniformly, with the reward that this one's ensemble expects
    (and the next observation, where dynamics vary); where it is not certain, a transition of its own stands instead.
    """
    own, foreign = torch.tensor(tasks, device=generator.device), max(1, round(share * batch_size))
    sources = min(_SOURCES, foreign)
    each = -(-foreign // sources)
    label = own.repeat_interleave(sources)

    def draw() -> tuple[Tensor]:
        kept = sample_rows(rows, batch_size, generator, own)
        number = torch.randint(tables.partners, label.shape, generator=generator, device=generator.device)
        source = tables.partner(label, number)  # whose rows have labels for it, but for the last of an odd number
        places = tables.pools.sample(each, generator, source)
        others = gather_rows(rows, tables.rows_at(places, source), source)
        i, j = (part.unsqueeze(1).expand_as(places) for part in (label, source))
        cells = i.flatten(), j.flatten(), places.flatten()
        relabelled = tables.relabelled(layout, layout.context(others).flatten(0, 1), *cells).view(*places.shape, -1)
        others = torch.cat([relabelled, others[..., layout.context_size :]], -1)
        others, certain = (
            part.unflatten(0, (len(own), sources)).flatten(1, 2)[:, :foreign]
            for part in (others, tables.may(i, j, places))
        )
        kept[:, :foreign] = torch.where(certain.unsqueeze(-1), others, kept[:, :foreign])
        return (kept,)

    return draw
