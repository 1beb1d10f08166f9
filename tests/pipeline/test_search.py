"""Search spaces: draws that follow their law, the same for the same seed; suggestions that follow from values alone."""

import math

import numpy as np
import pytest

from mbml.settings import ConfigError
from pipeline.search import Domain, Suggestions, check_searcher, domain, drawn, judged

SPACE = {
    "a": Domain("uniform", (-1.0, 3.0)),
    "b": Domain("loguniform", (1e-4, 1.0)),
    "c": Domain("randint", (2, 5)),
    "d": Domain("choice", ("x", (1, 2))),
}


def test_draws_follow_their_law():
    points = drawn(SPACE, 4000, 0)
    a, b, c, d = ([point[name] for point in points] for name in SPACE)
    assert -1 <= min(a) < -0.98
    assert 2.98 < max(a) <= 3
    assert np.mean(a) == pytest.approx(1, abs=0.1)
    assert np.mean(np.log10(b)) == pytest.approx(-2, abs=0.1)
    assert min(b) >= 1e-4
    assert {value: c.count(value) for value in c} == pytest.approx({2: 1333, 3: 1333, 4: 1333}, rel=0.1)
    assert d.count("x") == pytest.approx(2000, rel=0.1)
    assert all(value == float(f"{value:.4g}") for value in [*a, *b])  # a label tells it


def test_the_same_seed_draws_the_same_points_and_more_samples_only_add():
    assert drawn(SPACE, 5, 3) == drawn(SPACE, 9, 3)[:5]
    assert drawn(SPACE, 5, 3) != drawn(SPACE, 5, 4)
    few = drawn({"d": SPACE["d"]}, 50, 0)
    assert sorted(map(str, few)) == ["{'d': 'x'}", "{'d': (1, 2)}"]


@pytest.mark.parametrize(
    ("hint", "given", "words"),
    [
        (float, [1, 2], "one of uniform"),
        (float, {"normal": [0, 1]}, "one of uniform"),
        (float, {"uniform": [0, 1], "choice": [1]}, "one of uniform"),
        (float, {"choice": []}, "one of uniform"),
        (float, {"uniform": [0]}, "two numbers"),
        (float, {"uniform": [0, "wide"]}, "two numbers"),
        (float, {"uniform": [0, math.inf]}, "two numbers"),
        (float, {"uniform": [2, 1]}, "below its high end"),
        (float, {"loguniform": [0, 1]}, "above 0"),
        (int, {"uniform": [1, 8]}, "give randint"),
        (int, {"randint": [1.5, 8]}, "integer"),
        (int, {"randint": [3, 3]}, "below its high end"),
        (int, {"choice": [1, "many"]}, "entry 1"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_field(hint, given, words):
    with pytest.raises(ConfigError, match=r"^some\.field") as caught:
        domain("some.field", hint, given)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_space_is_what_the_file_says():
    assert domain("p", float, {"uniform": [0, 2]}) == Domain("uniform", (0.0, 2.0))
    assert domain("p", int, {"randint": [0, 2]}) == Domain("randint", (0, 2))
    assert domain("p", tuple[int, ...], {"choice": [[1], [2, 3]]}) == Domain("choice", ((1,), (2, 3)))


def test_objectives_are_of_the_last_axis():
    scores = np.array([[1.0, 5.0], [3.0, 2.0]])
    assert judged("train_return", scores).tolist() == [3.0, 2.5]
    assert judged("train_worst", scores).tolist() == [1.0, 2.0]


def test_suggestions_follow_from_seed_and_values_and_get_better():
    pytest.importorskip("optuna", reason="optuna is not installed")
    check_searcher("optuna")

    def found(seed: int, rounds: int = 12) -> list[dict]:
        search, points = Suggestions(SPACE, seed), []
        for number in range(rounds):
            asked = search.ask(3)
            points += asked
            search.tell([-((point["a"] - 1) ** 2) if number != 1 else None for point in asked])
        return points

    points = found(0)
    assert points == found(0)
    assert points != found(1)
    assert all(point.keys() == SPACE.keys() and point["c"] in (2, 3, 4) for point in points)
    missed = [abs(point["a"] - 1) for point in points]
    assert np.mean(missed[-9:]) < np.mean(missed[:9])


def test_a_searcher_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install optuna"):
        check_searcher("optuna")
    check_searcher("random")
