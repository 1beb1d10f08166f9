"""Fitted Q evaluation against the truth: what it says of teachers, beside what they return when they are played.

    python -m examples.offline_values umaze_goal half_cheetah_vel --store runs/store

reads batches, teachers and references of these families from the store of their runs (`make pipeline ENV=...`), or
makes them. Without a simulator a fit chooses by these values which single teacher acts before anything was seen.
"""

import argparse
import json

import numpy as np
from scipy.stats import spearmanr

from actors.artefacts import load_returns
from actors.stage import Ref
from actors.stages.fqe import Fqe
from actors.store import Store
from mbml.settings import changed
from pipeline.cluster import connect
from pipeline.plan import Planner
from pipeline.presets import preset
from pipeline.scheduler import execute


def planned(env: str, teacher: str, size: str) -> tuple[Planner, Ref]:
    """The jobs of a run of one family, with fitted Q evaluation of its teachers."""
    planner = Planner(changed(preset(env, size), {"teacher": teacher, "methods": ("evidence",)}))
    artefacts, config = planner.run().artefacts, planner.config
    collect, teach = tuple(artefacts["collect"]), tuple(artefacts["teach"])
    return planner, planner.add(Fqe, config, "fqe", config=config.fqe, collect=collect, teach=teach)


def compared(said: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """How well values `[teacher, task]` stand for returns `[teacher, task]`.

    "order": Spearman's rank correlation over the teachers of a task, mean over the tasks that it is defined on.
    "chosen": mean return of the teacher with the highest mean value, and "best", "mean", "worst" of all teachers.
    "own chosen": mean over tasks of the return of the teacher with the highest value there; "own best": the highest.
    """
    pairs = zip(said.T, true.T, strict=True)
    order = [float(spearmanr(a, b)[0]) for a, b in pairs if np.ptp(a) and np.ptp(b)]  # pyright: ignore[reportArgumentType]
    means, tasks = true.mean(1), np.arange(true.shape[1])
    return {
        "order": float(np.mean(order)),
        "chosen": float(means[said.mean(1).argmax()]),
        "best": float(means.max()),
        "mean": float(means.mean()),
        "worst": float(means.min()),
        "own chosen": float(true[said.argmax(0), tasks].mean()),
        "own best": float(true.max(0).mean()),
    }


def main() -> None:
    """Print a table, a line of JSON for each family and kind of teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="+")
    parser.add_argument("--teacher", nargs="+", default=["bcq", "td3_bc"])
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--store", default="runs/store")
    given = parser.parse_args()
    store = Store(given.store)
    with connect(None):
        for env in given.env:
            for teacher in given.teacher:
                planner, said = planned(env, teacher, given.preset)
                true = planner.plan.artefacts["references"][0]
                outcome = execute(planner.plan.needed([said, true]), store.url)
                if not outcome.complete:
                    raise SystemExit(f"{env}: not everything could be made.")
                places = [store.fetch(*ref) for ref in (said, true)]
                tables = np.array([load_returns(place, planner.plan.train) for place in places])
                everywhere = ~np.isnan(tables).any((0, 2))  # of many teachers some alone are compared on all tasks
                print(json.dumps({"env": env, "teacher": teacher, **compared(*tables[:, everywhere])}), flush=True)


if __name__ == "__main__":
    main()
