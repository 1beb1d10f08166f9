"""The paper's figures from the sweeps that stand in the store."""

from contextlib import suppress
from pathlib import Path

from actors.store import Store
from pipeline.config import ConfigError, Place, RunConfig
from pipeline.plan import plan
from pipeline.publish import Log, make_folder
from pipeline.report.drawing import FIGURES, Picture, picture
from pipeline.report.page import Page
from pipeline.report.paper import PAPER
from pipeline.sweep import sweep_results
from pipeline.sweep_config import load_sweep, runnable, sweep_defaults


def draw(config: RunConfig, place: Place, out: Path, log: Log) -> int:
    """Draw every figure whose sweep is finished into `out`; `log` hears of each, and what the others need.

    Raises ConfigError where no figure can be drawn.
    """
    store, found, pictures = Store(place.store), {}, []
    entries = [entry for entry in FIGURES.values() if entry.section == PAPER]
    command = f"make sweep SWEEP={{}} ENV={config.env}".format
    for name in dict.fromkeys(entry.sweep for entry in entries):
        sweep = load_sweep(name)
        with suppress(ValueError):  # not run here, or not possible in this environment
            swept = sweep_defaults(sweep, config)
            found[name] = sweep_results(sweep, plan(swept, runnable(sweep, swept, lambda line: None)), store)
    if not found:
        first = command(entries[0].sweep)
        raise ConfigError(f"No sweep of {config.env} that has a figure is finished in {store.url}; run one: {first}.")
    make_folder(out)
    for entry in entries:
        drawn = Picture(entry, f"Left out: it needs the sweep {entry.sweep}: {command(entry.sweep)}")
        if entry.sweep in found:
            drawn = picture(entry.name, found[entry.sweep], out)
        log(f"{entry.name}: {drawn.file or drawn.text}")
        pictures.append(drawn)
    title = f"The paper's figures, {config.env}, preset {config.preset}, seed {config.seed}"
    Page(title=title, pictures=pictures).write(out, "figures.md")
    log(f"Figures: {out / 'figures.md'}")
    return 0
