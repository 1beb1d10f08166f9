"""The paper's figures from the sweeps that stand in the store."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.store import Store
from pipeline.config import ConfigError, RunConfig
from pipeline.plan import plan
from pipeline.publish import Log, make_folder
from pipeline.report.paper import FIGURES, write_figures
from pipeline.run import Place
from pipeline.sweep import sweep_summary
from pipeline.sweep_config import load_sweep, runnable, sweep_defaults


def draw(config: RunConfig, place: Place, out: Path, log: Log) -> int:
    """Draw every figure whose sweep is finished into `out`; `log` hears of each, and what the others need.

    Raises ConfigError where no figure can be drawn.
    """
    store = Store(place.store)
    names = list(dict.fromkeys(figure.sweep for figure in FIGURES.values()))
    summaries: dict[str, dict[str, Any]] = {}
    for name in names:
        sweep = load_sweep(name)
        with suppress(ValueError):  # not run here, or not possible in this environment
            changed = sweep_defaults(sweep, config)
            jobs = plan(changed, runnable(sweep, changed, lambda line: None))
            summaries[name] = sweep_summary(sweep, jobs, store)
    if not summaries:
        raise ConfigError(
            f"No sweep of {config.env} is finished in {store.url}; run one of {', '.join(names)} first: "
            f"make sweep SWEEP={names[0]} ENV={config.env}."
        )
    make_folder(out)
    text = [f"# The paper's figures, {config.env}, preset {config.preset}, seed {config.seed}"]
    for number, file, missing in write_figures(summaries, out):
        log(f"figure {number}: {file or missing}")
        if file is not None:
            figure = FIGURES[number]
            text.append(f"## Figure {number}: {figure.title}\n\n![{figure.title}]({file.name})\n\n{figure.caption}")
    (out / "figures.md").write_text("\n\n".join(text) + "\n")
    log(f"Figures: {out / 'figures.md'}")
    return 0
