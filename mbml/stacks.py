"""How many small tasks learn fastest side by side, by the size of their networks alone: any machine finds the same."""

from torch import nn

from mbml.learner import Learner

_BYTES = 16 * 2**20
"""Of weights, gradients and moments: with more a stack falls out of the caches, and every task takes longer."""
_MOST = 25
"""From here on nothing is won: what a step costs however many tasks there are is spread thin enough."""


def side_by_side(learner: Learner) -> int:
    """How many tasks a stack should have, given a `learner` of one.

    On two cores of a server (benchmarks.grow, part `stacks`) it comes within a fifth of the best number.
    """
    numbers = 0
    for part in learner.parts().values():
        if isinstance(part, nn.Module | nn.Parameter):
            numbers += sum(p.numel() for p in ([part] if isinstance(part, nn.Parameter) else part.parameters()))
    return max(1, min(_MOST, _BYTES // (16 * numbers)))
