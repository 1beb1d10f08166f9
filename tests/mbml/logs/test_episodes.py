"""From logged rows to transitions, against the rules written row by row, and one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbml.logs.contract import Counts, Raw
from mbml.logs.episodes import transitions
from mbml.transitions import DatasetError, check_episodes
from tests.mbml.logs.fleet import machine


def raw(columns: dict[str, Any], **more: Any) -> Raw:
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    names = {name: [f"{name}_{i}" for i in range(a.shape[1])] if a.ndim == 2 else [name] for name, a in arrays.items()}
    return Raw("t", "log.csv", arrays, names, **more)


def without(columns: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: column for name, column in columns.items() if name not in names}


def naive(columns: dict[str, np.ndarray]) -> tuple[list[list[tuple]], Counts]:
    """Episodes of (s, a, s', r, terminated) without a given s': a list of dictionaries at a time."""
    rows = [{name: column[i] for name, column in columns.items()} for i in range(len(columns["reward"]))]
    episodes: dict[Any, list[dict]] = {}
    for row in rows:
        episodes.setdefault(row["episode"], []).append(row)
    found, bad, unfollowed, kept_runs = [], 0, 0, 0
    for own in episodes.values():
        own.sort(key=lambda row: row["step"])
        pieces: list[list[tuple]] = []
        going = False
        for t, row in enumerate(own):
            numbers = [*row["observation"], *row["action"], row["reward"]]
            follower = own[t + 1] if t + 1 < len(own) and own[t + 1]["step"] == row["step"] + 1 else None
            if not all(math.isfinite(x) for x in numbers):
                bad, going = bad + 1, False
                continue
            if follower is not None:
                after = follower["observation"]
            else:
                after = row["observation"] if row["terminated"] else [math.nan]
            if not all(math.isfinite(x) for x in after):
                unfollowed, going = unfollowed + 1, False
                continue
            if not going:
                pieces.append([])
            pieces[-1].append((*row["observation"], *row["action"], *after, row["reward"], bool(row["terminated"])))
            going = follower is not None
        found += pieces
        kept_runs += bool(pieces)
    number = sum(map(len, found))
    return found, Counts(number, len(found), bad, unfollowed, len(found) - kept_runs)


def as_episodes(batch: Any) -> list[list[tuple]]:
    found: list[list[tuple]] = [[] for _ in range(int(batch.episode[-1]) + 1)]
    for i in range(len(batch)):
        assert batch.step[i] == len(found[batch.episode[i]])
        vectors = (*batch.observation[i], *batch.action[i], *batch.next_observation[i])
        found[batch.episode[i]].append((*vectors, batch.reward[i], bool(batch.terminated[i])))
    return found


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    holes=st.integers(0, 6),
    lost=st.integers(0, 2),
    shuffled=st.booleans(),
)
def test_rows_become_transitions_by_the_rules(lengths, seed, holes, lost, shuffled):
    columns, generator = without(machine(tuple(lengths), seed), "next_observation"), np.random.default_rng(seed)
    number = len(columns["reward"])
    for _ in range(holes):
        name = str(generator.choice(["observation", "action", "reward"]))
        columns[name][generator.integers(number)] = generator.choice([np.nan, np.inf, -np.inf])
    order = np.arange(number)
    if number > 30:  # lost rows only where most steps show that they are counted
        order = np.delete(order, generator.integers(number, size=lost))
    if shuffled:
        order = generator.permutation(order)
    columns = {name: column[order] for name, column in columns.items()}
    expected, counts = naive(columns)
    if not expected:
        with pytest.raises(DatasetError, match="no transition left"):
            transitions(raw(columns), drop_bad_rows=True)
        return
    task = transitions(raw(columns), drop_bad_rows=True)
    assert as_episodes(task.batch) == expected
    assert task.counts == counts
    longest = max(map(len, expected))
    assert check_episodes([("made", task.batch)], longest + 1) == len(expected)


def test_what_is_given_is_kept():
    columns = machine((5, 3, 1), ends=(False, True, False))
    task = transitions(raw(columns))
    for name, column in columns.items():
        assert np.array_equal(getattr(task.batch, name), column), name
    assert task.counts == Counts(9, 3, 0, 0, 0)


def test_a_row_at_a_time_limit_without_a_next_observation_is_dropped():
    """Row D3: what it led to is not logged, and the following row is of another episode."""
    columns = without(machine((5, 3), ends=(False, True)), "next_observation", "episode", "step")
    task = transitions(raw(columns))
    assert task.counts == Counts(7, 2, 0, 1, 0)
    assert np.array_equal(task.batch.next_observation[3], columns["observation"][4])
    assert task.batch.truncated.tolist() == [False] * 3 + [True] + [False] * 3
    assert task.batch.terminated.tolist() == [False] * 6 + [True]
    assert np.array_equal(task.batch.next_observation[6], columns["observation"][7])  # nothing bootstraps from it


def test_a_next_observation_that_is_missing_only_at_the_ends_is_derived_elsewhere():
    columns = machine((4, 3), ends=(False, True))
    columns["next_observation"][[1, 3, 6]] = np.nan
    task = transitions(raw(columns))
    assert task.counts == Counts(6, 2, 0, 1, 0)
    assert np.array_equal(task.batch.next_observation[1], columns["observation"][2])


def test_rows_shifted_by_one_are_put_right():
    """Row D3: reward and flags stand beside the observation that the step led to."""
    true = machine((5, 3), ends=(False, True))
    rows: dict[str, list] = {name: [] for name in ("observation", "action", "reward", "terminated", "episode", "step")}
    for number, length in enumerate((5, 3)):
        own = np.flatnonzero(true["episode"] == number)
        path = [*true["observation"][own], true["next_observation"][own[-1]]]
        for t in range(length + 1):
            rows["observation"].append(path[t])
            rows["action"].append(true["action"][own[t]] if t < length else [np.nan, np.nan])
            rows["reward"].append(true["reward"][own[t - 1]] if t else np.nan)
            rows["terminated"].append(bool(t and true["terminated"][own[t - 1]]))
            rows["episode"].append(number)
            rows["step"].append(t)
    task = transitions(raw(rows, shifted=("reward", "terminated")))
    for name in ("observation", "action", "next_observation", "reward", "terminated"):
        assert np.array_equal(getattr(task.batch, name), true[name]), name
    assert task.counts.bad == 0
    with pytest.raises(DatasetError, match=r"log\.csv, task t, episode 0, step 0: reward is nan"):
        transitions(raw(rows))


def test_a_next_observation_that_is_no_following_row_cuts_the_episode():
    columns = machine((6,))
    columns["observation"][3] += 50
    task = transitions(raw(columns))
    assert task.counts == Counts(6, 2, 0, 0, 1)
    assert task.batch.step.tolist() == [0, 1, 2, 0, 1, 2]
    assert task.batch.truncated.tolist() == [False, False, True, False, False, True]


def test_a_rounded_next_observation_is_the_following_row():
    columns = machine((6,))
    columns["next_observation"] = columns["next_observation"].astype(np.float32).astype(np.float64)
    task = transitions(raw(columns))
    assert task.counts.cuts == 0
    assert np.array_equal(task.batch.next_observation[:-1], columns["observation"][1:])


def test_steps_that_begin_anew_begin_an_episode_and_times_only_order():
    columns = without(machine((4, 3), ends=(True, True)), "next_observation", "episode")
    assert transitions(raw(columns)).counts == Counts(7, 2, 0, 0, 0)
    times = np.array([0.0, 1.1, 1.9, 40.0, 0.2, 1.0, 2.5])
    assert transitions(raw({**columns, "step": times})).counts == Counts(7, 2, 0, 0, 0)
    dates = np.array(["2026-01-01T00", "2026-01-01T01", "2026-01-05T00"], "datetime64[s]")
    one = {name: column[:3] for name, column in without(columns, "terminated", "truncated").items()}
    backwards = {name: column[::-1] for name, column in {**one, "episode": np.zeros(3)}.items()}
    task = transitions(raw({**backwards, "step": dates[::-1]}))
    assert np.array_equal(task.batch.observation, one["observation"][:2])


def test_numbers_of_any_kind_are_taken():
    columns = machine((5,), ends=(True,))
    columns["observation"] = np.array([[1, 0, 3]] * 5, dtype=np.uint8)
    columns["next_observation"] = columns["observation"].astype(bool).astype(np.int64) * [[1, 0, 3]]
    columns["action"] = np.array([[0, 55], [3, 20], [0, 1], [9, 9], [40, 2]], dtype=np.int16)
    columns["terminated"] = np.array([0.0, 0, 0, 0, 1])
    columns["truncated"] = np.zeros(5, dtype=int)
    assert transitions(raw(columns)).counts.rows == 5


def broken(**changes: Any) -> dict[str, Any]:
    return {**machine((5, 3)), **changes}


def at(name: str, row: int, value: Any) -> dict[str, Any]:
    columns = machine((5, 3))
    columns[name][row] = value
    return columns


REFUSED = {
    "nan": (at("action", 6, np.nan), r"log\.csv, task t, episode 1, step 1: action_0 is nan, no finite number; drop"),
    "huge": (at("observation", 2, 1e300), r"observation_0 is 1e\+300, too large \(the limit is 1e\+30"),
    "flag": (broken(terminated=np.full(8, 2)), "terminated must be true or false, or 1 or 0"),
    "flag of text": (broken(truncated=np.full(8, "no")), "truncated must be true or false"),
    "goes on": (at("terminated", 1, True), "episode 0, step 1: terminated is set, but its episode goes on"),
    "twice": (at("step", 1, 0), "step 0 of episode 0 is there twice"),
    "switch": (broken(action=np.array([[True]] * 8)), "action_0 holds true and false; discrete actions are not"),
    "choices": (broken(action=np.arange(8).reshape(8, 1) % 4), "whole numbers 0 to 3; discrete actions are not"),
    "length": (broken(reward=np.zeros(7)), "reward has 7 rows, observation_0 8"),
    "width": (broken(next_observation=np.zeros((8, 2))), "next observations have 2 numbers, observations 3"),
    "episodes": (broken(episode=np.array([None] * 8)), "episode must name an episode in every row"),
    "missing times as episodes": (
        broken(episode=np.array(["2026-01-01"] * 7 + ["NaT"], "M8[s]")),
        "episode must name an episode in every row",
    ),
    "times": (broken(step=np.full(8, np.nan)), "step must be a number or a time in every row"),
    "empty": ({name: column[:0] for name, column in machine((2,)).items()}, "has no rows"),
    "no end known": (
        without(machine((5, 3)), "truncated", "episode", "step", "next_observation"),
        "terminated but no truncated, episode, step or next observation",
    ),
    "nothing left": (without(machine((1,), ends=(False,)), "next_observation"), "has no transition left: of 1 rows"),
}


@pytest.mark.parametrize(("columns", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_said_in_a_sentence(columns, words):
    with pytest.raises(DatasetError, match=words):
        transitions(raw(columns))
