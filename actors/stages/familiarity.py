"""What the policy of a run judges by whether somebody is like any of its training tasks."""

from dataclasses import asdict, dataclass
from typing import Any

from actors.artefacts import layout_of, load_rows, write_json
from actors.stage import Ref, Run, stage
from mbml.deploy.familiarity import MOST_ROWS, FamiliarityTraining
from mbml.rows import rows_of


@dataclass(frozen=True)
class Familiarity:
    """Of the last rows of `tasks`, of which there are two or more."""

    env: str
    tasks: tuple[int, ...]
    collect: tuple[Ref, ...]


@stage(version=1)
def familiarity(spec: Familiarity, run: Run) -> dict[str, Any]:
    """Leaves `familiarity.safetensors`, its networks, and `calibration.json`."""
    rows = load_rows(run.paths(spec.collect), spec.tasks)
    last = [rows_of(rows, place, -MOST_ROWS) for place in range(len(spec.tasks))]
    run.train(training := FamiliarityTraining(layout_of(spec.env), last))
    found = training.calibrated()
    found.models.save(run.out / "familiarity.safetensors")
    write_json(run.out / "calibration.json", asdict(found.calibration))
    return {}
