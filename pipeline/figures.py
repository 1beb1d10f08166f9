"""The paper's figures from the sweeps that stand in the store."""

from pathlib import Path

from actors.store import Store
from pipeline.config import ConfigError, Place, RunConfig
from pipeline.plan import plan
from pipeline.publish import Log, make_folder
from pipeline.report.drawing import FIGURES, Picture, picture
from pipeline.report.page import Page
from pipeline.report.paper import PAPER
from pipeline.report.warmstart import SECTION
from pipeline.sweep import command, sweep_results
from pipeline.sweep_config import load_sweep, runnable, sweep_defaults


def draw(config: RunConfig, place: Place, out: Path, log: Log) -> int:
    """Draw every figure whose sweep is finished into `out`; `log` hears of each, and which command makes the others.

    Raises ConfigError where no figure can be drawn.
    """
    store, found, remedies, pictures = Store(place.store), {}, {}, []
    entries = [entry for entry in FIGURES.values() if entry.section == PAPER]
    for name in dict.fromkeys(entry.sweep for entry in entries):
        sweep, remedy, notes = load_sweep(name), f"Run {command(f'sweep SWEEP={name}', config)}.", []
        try:
            swept = sweep_defaults(sweep, config)
            found[name] = sweep_results(sweep, plan(swept, runnable(sweep, swept, notes.append)), store)
        except ValueError as error:  # not run here, or not possible in this environment
            remedy = str(error)
        remedies[name] = " ".join([remedy, *notes])
    if not found:
        missing = [f"{entry.name}: {remedies[entry.sweep]}" for entry in entries]
        raise ConfigError("\n".join([f"No figure of {config.env} can be drawn.", *missing]))
    make_folder(out)
    for entry in entries:
        drawn = picture(entry.name, found[entry.sweep], out) if entry.sweep in found else Picture(entry, "Left out:")
        if drawn.file is None:
            drawn = Picture(entry, f"{drawn.text} {remedies[entry.sweep]}")
        log(f"{entry.name}: {drawn.file or drawn.text}")
        pictures.append(drawn)
    others = ", ".join(entry.name for entry in FIGURES.values() if entry.section == SECTION)
    log(f"{others}: in the report of {command('warmstart', config)}")
    title = f"The paper's figures, {config.env}, preset {config.preset}, seed {config.seed}"
    Page(title=title, pictures=pictures).write(out, "figures.md")
    log(f"Figures: {out / 'figures.md'}")
    return 0
