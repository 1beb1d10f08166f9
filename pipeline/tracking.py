"""Results in the trackers that people use, through their own packages: MLflow and Weights & Biases.

Where the tracker is and who may write is theirs to know (MLFLOW_TRACKING_URI, WANDB_MODE, ...).
"""

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from actors.artefacts import read_lines
from mbml.policy import in_short
from pipeline.config import ConfigError
from pipeline.results import Results

_PROJECT = "mbml"
_FILES = ("report.html", "results.parquet", "run.json")


def check_tracker(name: str | None) -> None:
    """Raise ConfigError where the tracker's package is not there, before hours are spent."""
    if name and importlib.util.find_spec(name) is None:
        raise ConfigError(f"track is {name!r}, whose package is not installed; pip install {name} gets it.")


def track(name: str, results: Results, out: Path, log: Callable[[str], None]) -> None:
    """Send configuration, curves and report in `out` to the tracker as one run; a tracker that fails is a sentence."""
    curves = [(line["step"], re.sub(r"[^\w\-. /:]", "_", line["tag"]), line["value"]) for line in _curves(out)]
    try:
        _SEND[name](out, dict(_flat(results.run["config"])), curves)
    except Exception as error:  # networks, keys, versions: the results stand in `out` whatever it says
        log(f"{name} did not take the results ({in_short(error)}); they are in {out}.")
    else:
        log(f"{name} has the results as run {out.name} of {_PROJECT}.")


def _curves(out: Path) -> list[dict[str, Any]]:
    return sorted(read_lines(out / "curves.jsonl"), key=lambda line: line["step"])


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every field by its dotted path."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _mlflow(out: Path, config: dict[str, Any], curves: list[tuple[int, str, float]]) -> None:
    import mlflow  # pyright: ignore[reportMissingImports]

    mlflow.set_experiment(_PROJECT)
    with mlflow.start_run(run_name=out.name):
        mlflow.log_params(config)
        for step, lines in groupby(curves, key=lambda line: line[0]):
            mlflow.log_metrics({tag: value for _, tag, value in lines}, step=step)
        for file in _FILES:
            mlflow.log_artifact(str(out / file))


def _wandb(out: Path, config: dict[str, Any], curves: list[tuple[int, str, float]]) -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    with wandb.init(project=_PROJECT, name=out.name, config=config, dir=str(out)) as run:
        run.define_metric("*", step_metric="step")
        for step, lines in groupby(curves, key=lambda line: line[0]):
            run.log({"step": step} | {tag: value for _, tag, value in lines})
        for file in _FILES:
            run.save(str(out / file), base_path=str(out), policy="now")


_SEND = {"mlflow": _mlflow, "wandb": _wandb}
