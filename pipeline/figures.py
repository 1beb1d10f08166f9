"""The paper's figures from the sweeps that stand in the store."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from actors.store import Store
from pipeline.config import ConfigError, Place, RunConfig
from pipeline.plan import plan
from pipeline.publish import Log, make_folder
from pipeline.report.drawing import FIGURES, Picture, picture
from pipeline.report.page import Page
from pipeline.report.paper import PAPER
from pipeline.results import Results
from pipeline.sweep import sweep_results
from pipeline.sweep_config import load_sweep, runnable, sweep_defaults


def draw(config: RunConfig, place: Place, out: Path, log: Log) -> int:
    """Draw every figure whose sweep is finished into `out`; `log` hears of each, and what the others need.

    Raises ConfigError where no figure can be drawn.
    """
    store = Store(place.store)
    entries = [entry for entry in FIGURES.values() if entry.section == PAPER]
    found: dict[str, Results] = {}
    for name in dict.fromkeys(entry.sweep for entry in entries):
        sweep = load_sweep(name)
        with suppress(ValueError):  # not run here, or not possible in this environment
            swept = sweep_defaults(sweep, config)
            found[name] = sweep_results(sweep, plan(swept, runnable(sweep, swept, lambda line: None)), store)
    command = f"make sweep SWEEP={{}} ENV={config.env}".format
    if not found:
        names = list(dict.fromkeys(entry.sweep for entry in entries))
        raise ConfigError(
            f"No sweep of {config.env} is finished in {store.url}; run one of {', '.join(names)} first: "
            f"{command(names[0])}."
        )
    make_folder(out)
    pictures = [
        picture(entry.name, found[entry.sweep], out)
        if entry.sweep in found
        else Picture(entry, f"Left out: it needs the sweep {entry.sweep}: {command(entry.sweep)}")
        for entry in entries
    ]
    for drawn in pictures:
        log(f"{drawn.entry.name}: {drawn.file or drawn.text}")
    title = f"The paper's figures, {config.env}, preset {config.preset}, seed {config.seed}"
    Page(title=title, pictures=pictures).write(out, "figures.md")
    log(f"Figures: {out / 'figures.md'}")
    return 0
