"""The report of a fit: what logs can say of the policy, and what they cannot."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.report import statistics, tables
from pipeline.report.drawing import picture
from pipeline.report.page import Page
from pipeline.report.wording import method_name, reference, with_interval
from pipeline.results import Results

PROTOCOL = (
    "Nothing was played. A value is the reward of a step, in the log's unit, averaged with the weights of the "
    "discount, by fitted Q evaluation on the logs of tasks that were held out: of the policy under what it believes "
    "after the first transitions of that log, of the best teacher whatever the task, of a teacher that learned from "
    "that log alone, and of the behaviour that was logged."
)
_NOTES = (
    "Values: 95 % intervals resample held-out tasks, and blocks of successive episodes within each. They do not "
    "cover what fitted Q evaluation itself gets wrong: where the log does not hold what a policy does, its value is "
    "extrapolated, mostly too high. The value of behaviour, whose actions are all in the log, beside the reward that "
    "was logged shows how far the method is off where it is easiest.",
    "Difference: mean squared difference of actions, each from -1 to 1 between its bounds, from those of the task's "
    "own teacher, on logged observations. It shows whether the policy adapts in the teacher's direction, not whether "
    "that teacher is good; on training tasks episodes are judged that nothing learned from.",
    "Identified: share of stretches of so many successive transitions, of episodes that nothing learned from, whose "
    "belief is nearest to that of their own training task. The log's own behaviour may give a task away, which the "
    "policy's will not; and tasks that are alike are confused at no cost. Swap: task j's transitions with the rewards "
    "that task i's learned models expect there; it shows what the belief follows, as far as these models are right.",
)
_ORDER = ("blind_teacher", "own_teacher", "behaviour")


def fit_page(results: Results, out: Path) -> Page:
    """The report; its pictures are drawn into `out`."""
    first = results.run["variants"][0]["label"]
    return Page(
        title=f"Policy from logs: {len(results.tasks('train'))} tasks, {len(results.tasks('test'))} held out",
        verdict=_verdict(results, first),
        facts=tables.facts(results),
        protocol=PROTOCOL,
        tables={
            "Held-out tasks": _held_out(results, first),
            "Does it know which task it is in?": _knows(results),
        },
        notes=_NOTES,
        pictures=[picture(name, results, out) for name in ("reward_swap", "distill_losses")],
        appendix={"Value on each held-out task": _per_task(results), "What it took": tables.cost(results)},
        config=results.run["config"],
        markdown="README.md",
    )


def _blocks(results: Results, name: str, seed: int | None) -> list[np.ndarray]:
    """Values `[B]` of every held-out task."""
    rows = results.rows("value", method=name, split="test")
    rows = rows[rows["seed"].isna() if seed is None else rows["seed"] == seed]
    return [part.sort_values("index")["value"].to_numpy() for _, part in rows.groupby("task", sort=True)]


def _policies(results: Results) -> list[tuple[str, int]]:
    """Methods and seeds with values, those with nothing seen too."""
    rows = results.rows("value").dropna(subset=["seed"])[["method", "seed"]].drop_duplicates()
    return [(name, int(seed)) for name, seed in rows.itertuples(index=False)]


def _named(results: Results) -> dict[str, tuple[str, int | None]]:
    seeds = len(results.run["config"]["distill_seeds"])
    found: dict[str, tuple[str, int | None]] = {}
    for name, seed in _policies(results):
        found[method_name(name) + f", seed {seed}" * (seeds > 1)] = name, seed
    return found | {reference(name).title: (name, None) for name in _ORDER}


def _less(own: list[np.ndarray], others: list[np.ndarray]) -> list[np.ndarray]:
    return [mine - other for mine, other in zip(own, others, strict=True)]


def _held_out(results: Results, first: str) -> pd.DataFrame:
    """A row a policy and reference: value, how much higher the first method's is, and difference of actions."""
    seed, rows = results.run["config"]["distill_seeds"][0], {}
    own = _blocks(results, first, seed)
    places = _places(np.concatenate(own))
    for title, (name, s) in _named(results).items():
        values = _blocks(results, name, s)
        rows[title] = {"value of a step (95 %)": with_interval(statistics.nested(values), places)}
        if (name, s) != (first, seed):
            less = statistics.nested(_less(own, values))
            rows[title][f"{method_name(first)} − it (95 %)"] = with_interval(less, places)
        for split, words in (("test", "difference of actions"), ("train", "the same, training tasks")):
            found = results.rows("difference", method=name, split=split)
            found = found[found["seed"].isna() if s is None else found["seed"] == s]["value"]
            rows[title] |= {words: f"{found.mean():.3g}"} if len(found) else {}
    logged = results.rows("logged_reward")["value"].mean()
    rows["logged reward of a step"] = {"value of a step (95 %)": f"{logged:.{places}f}"}
    return tables.filled(rows)


def _places(values: np.ndarray) -> int:
    """Decimals that show a hundredth of the spread."""
    spread = float(np.ptp(values)) or abs(float(values[0])) or 1.0
    return int(np.clip(2 - np.floor(np.log10(spread)), 0, 8))


def _knows(results: Results) -> pd.DataFrame:
    """A row per method: identification from so many transitions, and the reward-swap test; means over seeds."""
    rows: dict[str, dict[str, str]] = {}
    for name in results.methods("identified_from"):
        for count, share in results.rows("identified_from", method=name).groupby("index")["value"].mean().items():
            rows.setdefault(method_name(name), {})[f"identified from {count}"] = f"{share:.0%}"
    metrics = {"swap: rewards' task": "swap_follows_reward", "swap: state-actions' task": "swap_follows_state_action"}
    for header, metric in metrics.items():
        for name in results.methods(metric):
            share = results.rows(metric, method=name)["value"].mean()
            rows.setdefault(method_name(name), {})[header] = f"{share:.0%}"
    if not rows:
        return pd.DataFrame()
    counts = [header for header in next(iter(rows.values())) if header.startswith("identified")]
    return tables.filled(rows | {"chance": dict.fromkeys(counts, f"{1 / len(results.played('train')):.0%}")})


def _per_task(results: Results) -> pd.DataFrame:
    """A row per held-out task."""
    means = {title: np.array([b.mean() for b in _blocks(results, *of)]) for title, of in _named(results).items()}
    places = _places(np.concatenate(list(means.values())))
    return tables.per_task(results, "test", means, places)


def _verdict(results: Results, first: str) -> list[str]:
    """What the values say of the first method, against the blind teacher and behaviour."""
    own = _blocks(results, first, results.run["config"]["distill_seeds"][0])
    places, said = _places(np.concatenate(own)), []
    for name in ("behaviour", "blind_teacher"):
        found = statistics.nested(_less(own, _blocks(results, name, None)))
        verb = "above" if found.low > 0 else "below" if found.high < 0 else "not surely apart from"
        said.append(f"{verb} {reference(name).title} (difference {with_interval(found, places)})")
    level = with_interval(statistics.nested(own), places)
    tasks = f"{len(own)} held-out task{'s' * (len(own) > 1)}"
    sentence = f"By fitted Q evaluation on {tasks} {method_name(first)} earns {level} a step: "
    found = [sentence + " and ".join(said) + "."]
    smoke = "The numbers of a smoke run mean nothing: it only shows that every stage runs."
    return [smoke, *found] if results.run["preset"] == "smoke" else found
