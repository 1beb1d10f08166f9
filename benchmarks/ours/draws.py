"""The same random numbers on a GPU as on a CPU, whose generators differ: so that their results can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class CPUDraws(TorchFunctionMode):
    """Whatever is drawn inside is drawn on the CPU and then copied to where it was asked for.

    Every generator is stood in for by one on the CPU of the same seed, so what is compared with must start from a
    fresh generator as well, and nothing here may save or load one.
    """

    def __init__(self) -> None:
        super().__init__()
        # The generators themselves are kept too: one that came in a dead one's place would have its identity.
        self._twins: dict[int, tuple[torch.Generator, torch.Generator]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        generator = given.get("generator")
        if generator is None:
            return func(*args, **given)
        given["generator"] = self._twin(generator)
        if args and isinstance(args[0], Tensor):  # in place, such as `uniform_`
            place, *rest = args
            return place.copy_(func(torch.empty(place.shape, dtype=place.dtype), *rest, **given))
        return func(*args, **given | {"device": "cpu"}).to(generator.device)

    def _twin(self, generator: torch.Generator) -> torch.Generator:
        if id(generator) not in self._twins:
            self._twins[id(generator)] = generator, torch.Generator().manual_seed(generator.initial_seed())
        return self._twins[id(generator)][1]
