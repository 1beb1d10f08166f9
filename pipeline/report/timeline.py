"""The figure of where and when a run's jobs were done."""

from matplotlib import colormaps
from matplotlib.figure import Figure

from pipeline.report.drawing import INK, MissingData, figure, panels
from pipeline.results import Results

TOOK = "Where the time went"
_MOST = 40  # processes that can be told apart in one picture


@figure("timeline", TOOK, "Which process worked on what, and when")
def timeline(results: Results) -> Figure:
    """Jobs of this run, a row per process with the address and node of its machine, a colour per stage.

    Crossed out: the job failed, or its process or machine was lost. White: no work, or no process yet. Jobs whose
    artefacts were there already took no time; trials of a sweep are not shown.
    """
    spans = results.run.get("timeline") or []
    if not spans:
        raise MissingData("No job was done in this run, or it is of a version that did not write down when.")
    stages = list(dict.fromkeys(span["stage"] for span in spans))
    colours = {stage: colormaps["tab20"](place % 20) for place, stage in enumerate(stages)}
    rows = dict(sorted({span["worker"]: span["machine"] for span in spans}.items(), key=lambda row: (row[1], row[0])))
    shown = {worker: row for row, worker in enumerate(list(rows)[:_MOST])}
    made, (axes,) = panels(1, 1, 0.25 * len(shown) + 0.8)
    for span in spans:
        if (row := shown.get(span["worker"])) is not None:
            look = {"facecolor": colours[span["stage"]], "edgecolor": "white", "linewidth": 0.3}
            look |= {} if span["finished"] else {"hatch": "xxxx", "edgecolor": INK}
            axes.barh(row, span["seconds"] / 60, 0.8, span["started"] / 60, label=span["stage"], **look)
    axes.set_yticks(range(len(shown)), [f"{worker}: {rows[worker]}" for worker in shown], fontsize=7)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlabel("minutes since the run's start")
    if len(rows) > _MOST:
        axes.set_ylabel(f"the first {_MOST} of {len(rows)} processes")
    return made
