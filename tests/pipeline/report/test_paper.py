from typing import Any

import numpy as np
import pytest
from matplotlib.lines import Line2D

from pipeline.report import paper, statistics
from pipeline.report.style import method_colours
from pipeline.report.summary import MissingData, SummaryError, plain

SWEEPS = {
    "ablations": ("full", "no_relabelling", "no_triplet", "neither", "ground_truth", "no_ensemble"),
    "baselines": ("full", "contextual_bcq", "batch_pearl"),
    "triplet_margin": ("margin=0", "margin=2", "margin=4", "margin=8"),
}


@pytest.fixture(scope="module")
def sweeps(make_summary):
    """Summaries of the sweeps with three seeds a method; that of MetaGenRL beside the full model."""
    found = {name: plain(make_summary(seeds=3, methods=methods)) for name, methods in SWEEPS.items()}
    return found | {"metagenrl": plain(make_summary(seeds=2))}


def draw(number: int, summary: dict) -> Any:
    return paper.FIGURES[number].draw(summary)


def y(line: Line2D) -> np.ndarray:
    return np.asarray(line.get_ydata())


def entries(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def returns(summary: dict, method: str, split: str = "test") -> np.ndarray:
    """Means over tasks, `[seeds, steps]`."""
    return np.mean([run[split] for run in summary["evaluation"] if run["method"] == method], axis=2)


def test_every_figure_of_a_stored_sweep_is_written(sweeps, tmp_path):
    outcomes = paper.write_figures(sweeps, tmp_path / "new")
    assert [outcome.number for outcome in outcomes] == [2, 4, 5, 6, 7, 11]
    for outcome in outcomes:
        assert outcome.missing is None
        file = tmp_path / "new" / f"figure-{outcome.number:02d}.png"
        assert outcome.file == file
        assert file.read_bytes().startswith(b"\x89PNG")


def test_a_missing_sweep_is_named_with_the_command_that_makes_it(sweeps, tmp_path):
    (tmp_path / "figure-11.png").write_bytes(b"from an earlier call")
    outcomes = {
        outcome.number: outcome for outcome in paper.write_figures({"metagenrl": sweeps["metagenrl"]}, tmp_path)
    }
    assert outcomes[11].file is None
    assert outcomes[11].missing == (
        "Figure 11 needs the sweep triplet_margin: make sweep SWEEP=triplet_margin ENV=umaze_goal"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["figure-05.png"]
    assert "ENV=..." in (paper.write_figures({}, tmp_path)[0].missing or "")


def test_missing_numbers_become_the_sentence(sweeps, tmp_path):
    bare = {"environment": "ant_dir"}
    outcomes = paper.write_figures(dict.fromkeys([*SWEEPS, "metagenrl"], bare), tmp_path)
    assert all(outcome.file is None and (outcome.missing or "").endswith(".") for outcome in outcomes)
    with pytest.raises(MissingData, match="gain"):
        draw(4, sweeps["ablations"] | {"evaluation": sweeps["ablations"]["evaluation"][3:]})


def test_a_contradictory_summary_writes_nothing(make_summary, tmp_path):
    summary = make_summary()
    summary["tasks"]["train"].pop()
    with pytest.raises(SummaryError):
        paper.write_figures({"ablations": summary}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_figure_2_has_the_loss_above_the_return_on_training_tasks(sweeps):
    summary = sweeps["ablations"]
    top, bottom = draw(2, summary).axes
    losses = [run["loss_q"] for run in summary["distill"] if run["method"] == "neither"]
    assert np.allclose(y(top.lines[0]), np.mean(losses, axis=0))
    assert top.get_yscale() == "log"
    assert np.allclose(y(bottom.lines[0]), returns(summary, "neither", "train").mean(axis=0))
    assert y(bottom.lines[1])[0] == pytest.approx(np.mean(summary["references"]["train"]["bcq"]))
    assert bottom.texts[0].get_text() == "own BCQ"


def test_figure_4_compares_best_epochs_with_the_sign(sweeps):
    summary = sweeps["baselines"]
    best = {name: returns(summary, name).mean(axis=0).max() for name in SWEEPS["baselines"]}
    rival = max(best["contextual_bcq"], best["batch_pearl"])
    assert paper.gain(summary)[0] == pytest.approx((best["full"] - rival) / rival)
    figure = draw(4, summary)
    title = f"UmazeGoal-M: full {(best['full'] - rival) / rival:+.0%} over contextual BCQ"
    assert figure.axes[0].get_title(loc="left") == title
    assert entries(figure) == ["full (3 seeds)", "contextual BCQ (3 seeds)", "batch PEARL (3 seeds)"]
    assert "lose the sign" in paper.FIGURES[4].caption


def test_gain_over_a_better_rival_with_negative_returns_is_negative(sweeps):
    summary = sweeps["baselines"] | {"evaluation": [dict(run) for run in sweeps["baselines"]["evaluation"]]}
    for run in summary["evaluation"]:
        run["test"] = [[-150.0] * 4 if run["method"] == "full" else [-100.0] * 4] * 6
    assert paper.gain(summary)[0] == pytest.approx(-0.5)


def test_figure_5_has_a_line_a_seed_and_the_level_of_full(sweeps):
    summary = sweeps["metagenrl"]
    figure = draw(5, summary)
    lines = figure.axes[0].lines
    assert [y(line).tolist() for line in lines[:2]] == [row["return"] for row in summary["metagenrl"]]
    assert y(lines[2])[0] == pytest.approx(np.mean([run["test"][-1] for run in summary["evaluation"]]))
    assert len(lines) == len(draw(5, summary | {"evaluation": []}).axes[0].lines) + 1
    assert entries(figure)[0].startswith("MetaGenRL on training task 0")


def test_figure_6_draws_the_ablations_that_were_run(sweeps):
    summary = sweeps["ablations"]
    figure = draw(6, summary)
    assert [line.get_color() for line in figure.axes[0].lines] == [method_colours(summary)[m] for m in paper.ABLATIONS]
    fewer = summary | {"evaluation": [run for run in summary["evaluation"] if run["method"] in ("full", "neither")]}
    assert entries(draw(6, fewer)) == ["full (3 seeds)", "neither (3 seeds)"]


def test_bands_are_intervals_over_seeds(sweeps):
    summary = sweeps["ablations"]
    axes = draw(6, summary).axes[0]
    low, high = statistics.seed_interval(returns(summary, "full"))
    drawn = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert np.allclose(sorted({*drawn}), sorted({*low, *high}))
    single = summary | {"evaluation": [run for run in summary["evaluation"] if run["seed"] == 0]}
    assert not draw(6, single).axes[0].collections
    assert all("Nothing is smoothed" in paper.FIGURES[number].caption for number in (2, 4, 6, 7, 11))


def test_figure_7_averages_over_the_tasks_that_kept_rows(sweeps):
    summary = sweeps["ablations"]
    axes = draw(7, summary).axes[0]
    errors = {row["method"]: row["training"] for row in summary["relabelling"]}
    for line, name in zip(axes.lines, ("full", "no_ensemble"), strict=True):
        means = [np.mean([e for e in row["error"] if e is not None]) for row in errors[name]]
        assert np.allclose(y(line), means)
    assert axes.get_yscale() == "log"
    assert entries(draw(7, summary)) == [
        "ensemble (100% of rows kept at the end)",
        "single network (100% of rows kept at the end)",
    ]
    untrained = [row | {"training": None} for row in summary["relabelling"]]
    with pytest.raises(MissingData, match="over their training"):
        draw(7, summary | {"relabelling": untrained})


def test_figure_7_shades_what_a_logarithm_can_show(sweeps):
    training = [{"step": step, "error": [0.001, 1.0, 0.001], "kept": 0.5} for step in (1, 2)]
    summary = sweeps["ablations"] | {"relabelling": [{"method": "full", "training": training}]}
    shade = draw(7, summary).axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert shade.min() == pytest.approx(0.001)


def test_figure_11_has_a_line_a_variant(sweeps):
    summary = sweeps["triplet_margin"]
    figure = draw(11, summary)
    assert entries(figure) == [f"{label} (3 seeds)" for label in SWEEPS["triplet_margin"]]
    assert np.allclose(y(figure.axes[0].lines[2]), returns(summary, "margin=4").mean(axis=0))
    assert len({line.get_color() for line in figure.axes[0].lines}) == 4


def test_figure_11_is_not_drawn_from_a_single_margin(make_summary):
    """A sweep of another name may have left the artefacts of one of them."""
    with pytest.raises(MissingData, match="triplet_margin"):
        draw(11, plain(make_summary(seeds=3, methods=("margin=2",))))
