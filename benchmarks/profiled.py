"""Where the time of this project's competitors goes: a profile by kind of work, beside the time without a profiler."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.protocol import Measure
from benchmarks.process import Process, processors
from benchmarks.registry import Competitor, Row
from benchmarks.table import number

_PRODUCTS = "mm addmm bmm baddbmm mv addmv _linear_pointwise"
_OPTIMISER = "_fused_adam_ lerp_"
_DRAWS = "normal_ random_ uniform_ index_select index gather index_copy_ nonzero arange"
_VIEWS = (
    "as_strided transpose t mT unbind select slice view _unsafe_view reshape expand squeeze unsqueeze split chunk "
    "detach alias empty empty_like empty_strided unflatten flatten narrow split_with_sizes expand_as view_as permute "
    "resize_ result_type is_nonzero item _local_scalar_dense to _to_copy"
)
_KINDS = {
    "matrix products": _PRODUCTS,
    "optimiser steps and averaging": _OPTIMISER,
    "draws and gathers": _DRAWS,
    "views and allocation": _VIEWS,
}
_KIND = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_PASSES = "activations, losses, sums, copies"
_PHYSICS = "physics"
_PYTHON = "Python between them, and the profiler"
KINDS = (*_KINDS, _PASSES, _PHYSICS, _PYTHON)


def by_kind(measure: Measure, seconds: float) -> dict[str, float]:
    """Milliseconds per call by kind of work, under a profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        under = measure(seconds)
    spent = dict.fromkeys(KINDS, 0.0)
    for event in found.key_averages():
        library, _, operator = event.key.partition("::")
        if operator and library in ("aten", "mkldnn"):
            spent[_KIND.get(operator, _PASSES)] += event.self_cpu_time_total / 1e6
    spent[_PHYSICS] = under.get("physics_share", 0.0) * under["seconds"]
    spent[_PYTHON] = under["seconds"] - sum(spent.values())
    return {kind: 1000 * value / under["calls"] for kind, value in spent.items()}


def parts(target: str, arguments: Mapping[str, Any]) -> Measure:
    """Milliseconds per call of the competitor `module:function`, without a profiler, and under it by kind of work."""
    measure = pkgutil.resolve_name(target)(**arguments)

    def profiled(seconds: float) -> dict[str, Any]:
        alone = measure(seconds)
        return {"value": 1000 * alone["seconds"] / alone["calls"], "parts": by_kind(measure, seconds)}

    return profiled


def profile(rows: Sequence[Row], seconds: float, out: Path, log: Callable[[str], None]) -> str:
    """The table of the first competitor of every row, one column each."""
    (out / "log").mkdir(parents=True, exist_ok=True)
    found = []
    for row in rows:
        first = row.competitors[0]
        asked = Competitor(
            first.label, first.kind, f"{__name__}:parts", {"target": first.target, "arguments": first.arguments}
        )
        log(f"profile of {row.name}")
        process = Process(asked, processors(row.cores), Path(), out / "log" / f"{row.name}-profile.txt")
        try:
            found.append(process.measure(seconds))
        finally:
            process.close()
    return _markdown([row.name for row in rows], found)


def _markdown(names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> str:
    lines = [["ms a step", *(f"`{name}`" for name in names)], ["---", *("---:" for _ in names)]]
    for kind in KINDS:
        cells = []
        for one in found:
            value, total = one["parts"][kind], sum(one["parts"].values())
            cells.append(f"{number(value)} ({value / total:.0%})" if value else "-")
        lines.append([kind, *cells])
    lines.append(["together", *(number(sum(one["parts"].values())) for one in found)])
    lines.append(["without the profiler", *(number(one["value"]) for one in found)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
