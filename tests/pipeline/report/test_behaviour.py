"""The picture of what a policy does: lines are what was recorded, orange is what the task asks for."""

import dataclasses

import numpy as np
import pytest
from matplotlib.lines import Line2D

from mbml.envs import View
from mbml.envs.view import KINDS
from pipeline.report.behaviour import Shown, panels_of
from pipeline.report.drawing import MissingData, draw, styled

WAVE = np.stack([np.linspace(1, 5, 9), np.linspace(0, 3, 9) ** 2], 1)


def lines_of(axes) -> dict[str, np.ndarray]:
    """The lines of a panel `[n, 2]` by their label."""
    lines: list[Line2D] = axes.get_lines()
    return {str(line.get_label()): np.column_stack(line.get_data()) for line in lines}


def panel(view: View, feature: list[float]) -> dict[str, np.ndarray]:
    """The lines of a task of two episodes, the second in half of the steps and twice as far."""
    steps, values = np.arange(1, 10), WAVE[:, : len(view.axes)]
    episodes = {1: (steps, values), 5: (steps[:5], 2 * values[:5])}
    made = styled(lambda: panels_of(view, [Shown("a", np.array(feature), episodes, {5: ": 12.5"})]))
    return lines_of(made.axes[0])


def test_a_goal():
    found = panel(View("goal", ("x", "y"), walls=((0, 0, 1, 1),)), [4.0, 2.0])
    assert set(found) == {"episode 1", "episode 5: 12.5", "goal", "start"}
    np.testing.assert_array_equal(found["episode 1"], WAVE)
    np.testing.assert_array_equal(found["goal"], [[4, 2]])
    np.testing.assert_array_equal(found["start"], [WAVE[0], 2 * WAVE[0]])


def test_a_direction_is_as_long_as_the_farthest_path():
    found = panel(View("direction", ("x", "y")), [np.pi / 3])
    np.testing.assert_array_equal(found["episode 5: 12.5"], np.vstack([[0, 0], 2 * WAVE[:5]]))
    (begin, end), far = found["wanted direction"], np.hypot(*WAVE.T).max()
    np.testing.assert_allclose(begin, 0)
    np.testing.assert_allclose(end, [far / 2, far * np.sqrt(3) / 2])


@pytest.mark.parametrize("kind", ["level", "progress", "reward"])
def test_numbers_over_time(kind):
    found = panel(View(kind, ("v",)), [3.5])
    np.testing.assert_array_equal(found["episode 5: 12.5"], np.stack([np.arange(1, 6), 2 * WAVE[:5, 0]], 1))
    assert set(found) - {"episode 1", "episode 5: 12.5"} == ({"target"} if kind == "level" else set())
    if kind == "level":
        assert set(found["target"][:, 1]) == {3.5}


def test_every_kind_is_drawn():
    assert set(KINDS) == {"goal", "direction", "level", "progress", "reward"}


def test_a_report_shows_what_the_table_holds(synthetic):
    results = synthetic.results(("full", "no_triplet"), test=6)
    made = draw("behaviour", results)
    assert [axes.get_title(loc="left") for axes in made.axes] == results.labels("test")[:4]
    rows = results.rows("behaviour_1", task=2, index=5).sort_values("step")
    found = lines_of(made.axes[2])
    np.testing.assert_array_equal(found["episode 5"][:, 1], rows["value"])
    np.testing.assert_array_equal(found["goal"][0], results.run["tasks"]["test"][2]["features"])
    assert [text.get_text() for text in made.texts] == ["full, seed 0"]


def test_a_panel_says_what_the_numbers_of_a_bare_label_are(synthetic):
    results = synthetic.results(test=2)
    for task, label in zip(results.run["tasks"]["test"], ("4.5", "robot 1"), strict=True):
        task["label"] = label
    results.run["parameter"] = "gravity in m/s^2"
    assert [axes.get_title(loc="left") for axes in draw("behaviour", results).axes] == [
        "gravity in m/s^2 = 4.5",
        "robot 1",
    ]


def test_without_episodes_a_sentence(synthetic):
    results = synthetic.results()
    bare = dataclasses.replace(results, table=results.rows("score"))
    with pytest.raises(MissingData, match="No episodes of a policy"):
        draw("behaviour", bare)
