"""The run's curves in the formats that other tools read: TensorBoard event files and JSON lines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

_NO_LOSSES = ("method", "seed", "step")


def write_logs(summary: dict[str, Any], out: Path) -> None:
    """Write `out/tensorboard/` and `out/curves.jsonl` anew from a summary."""
    folder = out / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    with (out / "curves.jsonl").open("w") as lines, SummaryWriter(str(folder)) as writer:
        for tag, step, value in _scalars(summary):
            writer.add_scalar(tag, value, step)
            lines.write(json.dumps({"tag": tag, "step": step, "value": value}) + "\n")


def _scalars(summary: dict[str, Any]) -> Iterator[tuple[str, int, float]]:
    for stage, axis in (("collect", "step"), ("bcq", "iteration")):
        for curve in summary[stage]["curves"]:
            for step, value in zip(curve[axis], curve["return"], strict=True):
                yield f"{stage}/return/task-{curve['task']:03d}", step, value
    for run in summary["distill"]:
        for name in [name for name in run if name not in _NO_LOSSES]:
            for step, value in zip(run["step"], run[name] or [], strict=False):
                yield f"distill/{run['method']}/seed-{run['seed']}/{name}", step, value
    for run in summary["evaluation"]:
        for split in ("test", "train"):
            for step, scores in zip(run["step"], run.get(split) or [], strict=False):
                yield (
                    f"evaluate/{run['method']}/seed-{run['seed']}/{split}_return",
                    step,
                    sum(scores) / len(scores),
                )
