"""`play`: what it says and leaves, that it acts as anybody's own loop would, and what it refuses."""

import importlib.util
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

from mbml import AdaptivePolicy, envs
from mbml.data import Dataset
from mbml.deploy.description import Data, identity
from mbml.deploy.folder import write_folder
from mbml.envs.rendering import backend
from mbml.rows import RowLayout
from pipeline.command import main
from tests.mbml.deploy.small import describe, make_policy
from tests.mbml.test_data import example, from_episodes, write

HORIZON = 25
PENDULUM = "examples.pendulum_gravity:pendulum_gravity"


def a_policy(folder, env, bound=1.0, source: Any = "collected"):
    """A small policy that knows as much of an environment as one that learned in it."""
    layout = RowLayout(envs.get(env).observation_size, envs.get(env).action_size)
    policy, weights = make_policy("acting mixture", layout), folder.with_suffix(".weights")
    policy.save(weights)
    data = Data(source, env, HORIZON, "ab" * 32, 600)
    write_folder(folder, weights, describe(policy, data=data, action=identity(layout.action_size, bound)))
    return str(folder)


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    return a_policy(tmp_path_factory.mktemp("policies") / "maze", "umaze_goal")


def played(capsys, *options):
    """Run `play`; what it said."""
    assert main(["play", *options]) == 0
    return capsys.readouterr().out


def returns_in(said):
    return [float(number) for number in re.findall(r"return (\S+) in", said)]


def test_it_acts_as_ones_own_loop_would(maze, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    said = played(
        capsys, "--policy", maze, "--task", "test/3", "--episodes", "3", "--seed", "5", "--out", str(tmp_path)
    )
    policy, family = AdaptivePolicy.load(maze, seed=5), envs.get("umaze_goal")
    env = family.environment(family.tasks("test")[3], HORIZON)
    expected = []
    for episode in range(3):
        observation, _ = env.reset(seed=5 if episode == 0 else None)
        total, over = 0.0, False
        while not over:
            action = policy.act(observation)
            following, reward, terminated, truncated, _ = env.step(action)
            policy.observe(observation, action, reward, following, terminated, truncated)
            observation, over, total = following, terminated or truncated, total + reward
        expected.append(total)
    assert returns_in(said) == pytest.approx(expected, abs=0.051)
    weights = policy.belief.tasks
    assert weights is not None
    likely = int(weights.argmax())
    words = f"{HORIZON} steps; most like training task train/{likely} (task {likely}), {weights.max():.0%}"
    assert said.split("episode 3: ")[1].splitlines()[0].endswith(words)


def test_without_a_way_to_draw_the_picture_is_there_and_a_sentence_says_what_was_tried(
    maze, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("MUJOCO_GL", "crayons")
    (tmp_path / "episode-1.gif").touch()  # of an earlier call, which drew
    said = played(capsys, "--policy", maze, "--out", str(tmp_path))
    assert "tried were crayons (RuntimeError). The picture is there." in said
    assert [path.name for path in tmp_path.iterdir()] == ["behaviour.png"]
    assert said.splitlines()[-1].endswith(f"Files: {tmp_path / 'behaviour.png'}")
    image = Image.open(tmp_path / "behaviour.png")
    assert np.asarray(image).std() > 10


def test_the_first_and_the_last_episode_are_films_where_the_machine_draws(maze, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    if backend()[0] is None:
        pytest.skip("nothing draws on this machine")
    said = played(capsys, "--policy", maze, "--episodes", "3", "--out", str(tmp_path))
    suffix = "mp4" if importlib.util.find_spec("imageio_ffmpeg") else "gif"
    names = ["behaviour.png", f"episode-1.{suffix}", f"episode-3.{suffix}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert said.splitlines()[-1].endswith("Files: " + ", ".join(str(tmp_path / name) for name in names))
    assert "No film" not in said
    if suffix == "gif":
        film = Image.open(tmp_path / names[1])
        # Pillow shows one frame longer where the next is the same.
        assert HORIZON - 5 < film.n_frames <= HORIZON  # pyright: ignore[reportAttributeAccessIssue]
        assert film.size == (240, 240)
        assert np.asarray(film.convert("RGB")).std() > 5
    else:
        assert (tmp_path / names[1]).read_bytes()[4:8] == b"ftyp"
    quiet = played(capsys, "--policy", maze, "--episodes", "3", "--out", str(tmp_path / "again"))
    assert returns_in(quiet) == returns_in(said)


def test_a_family_from_outside_shows_its_rewards(tmp_path, capsys):
    folder = a_policy(tmp_path / "pendulum", PENDULUM)
    said = played(capsys, "--policy", folder, "--episodes", "2", "--out", str(tmp_path / "out"))
    assert len(returns_in(said)) == 2
    assert (tmp_path / "out" / "behaviour.png").exists()
    if not importlib.util.find_spec("pygame"):
        assert "No film: render() fails with DependencyNotInstalled" in said


def test_a_policy_that_learned_from_logs_acts_in_their_units(tmp_path, capsys):
    """Torques up to 2 N m, as Pendulum-v1 takes them: the same as that environment by itself."""
    folder = a_policy(tmp_path / "pendulum", PENDULUM, bound=2.0, source="logged")
    said = played(capsys, "--policy", folder, "--env", PENDULUM, "--episodes", "1", "--out", str(tmp_path / "out"))
    policy, task = AdaptivePolicy.load(folder, seed=0), envs.get(PENDULUM).tasks("test")[0]
    env = gymnasium.make("Pendulum-v1", g=float(task.parameter[0]))
    observation, _ = env.reset(seed=0)
    total = 0.0
    for _ in range(HORIZON):
        action = policy.act(observation)
        following, reward, *_ = env.step(action)
        policy.observe(observation, action, reward, following)
        observation, total = following, total + float(reward)
    assert returns_in(said) == pytest.approx([total], abs=0.06)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--env", "umaze"], ["There is no environment 'umaze'", "umaze_goal"]),
        (["--env", "ant_dir"], ["observations of 4 numbers; those of ant_dir have 27"]),
        (["--task", "test/10"], ["umaze_goal has no task 'test/10'; it has train/0 to train/9, test/0 to test/9"]),
        (["--task", "test/" + "9" * 5000], ["umaze_goal has no task 'test/9999"]),
        (["--task", "3"], ["umaze_goal has no task '3'"]),
        (["--task", "test/-1"], ["no task 'test/-1'"]),
        (["--episodes", "0"], ["episodes is 0"]),
        (["--seed=-1"], ["seed is -1"]),
        (["--out", "/proc/none"], ["/proc/none"]),
        (["--out", "s3://x/y"], ["--out is s3://x/y, but that should be a folder of this machine"]),
        (["--policy", "/no/such/folder"], ["/no/such/folder is no policy folder"]),
        (["--policy", "."], [" is no policy folder: policy.json cannot be read"]),
    ],
)
def test_bad_input_is_one_sentence(maze, capsys, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    assert main(["play", "--policy", maze, *options]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err
    assert not list(tmp_path.iterdir())


def test_pictures_stay_out_of_the_folder_of_a_policy(maze, tmp_path, capsys, monkeypatch):
    """They would be no part of it, and nothing would write a policy there again."""
    before = sorted(Path(maze).iterdir())
    (tmp_path / "link").symlink_to(maze)
    for out in (maze, f"{maze}/pictures", str(tmp_path / "link" / "pictures")):
        assert main(["play", "--policy", maze, "--out", out]) == 2
        assert "is in a policy's folder, which holds nothing else" in capsys.readouterr().err
    monkeypatch.chdir(maze)
    assert main(["play", "--policy", "."]) == 2
    assert "choose another with --out" in capsys.readouterr().err
    assert sorted(Path(maze).iterdir()) == before


STRANGER = """
import sys
import gymnasium, numpy as np
from mbml.envs import family

class Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, parameter):
        self.at = {at!r}
        if self.at == "make" and parameter == 3:
            raise LookupError()

    def reset(self, **how):
        super().reset(**how)
        if self.at == "reset":
            return {{}}["missing"], {{}}
        return np.zeros(3, np.float32), {{}}

    def step(self, action):
        if self.at == "step":
            sys.exit(3)
        if self.at == "values":
            raise ValueError("two\\nlines")
        return np.zeros(3, np.float32), 0.0, False, False, {{}}

def feature(parameter):
    return parameter if {at!r} != "feature" else 1 / 0

fam = family("own", make=Broken, train=[1, 2], test=[3], feature=feature)
"""


@pytest.mark.parametrize(
    ("at", "sentence"),
    [
        ("make", "make of own fails with LookupError"),
        ("reset", "test task 0 of own: a reset fails with KeyError: 'missing'"),
        ("step", "test task 0 of own: step 1 of an episode fails with SystemExit: 3"),
        ("values", "test task 0 of own: step 1 of an episode fails with ValueError: two lines"),
        ("feature", "feature of own fails with ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_stranger_s_family_does_is_one_sentence(at, sentence, tmp_path, capsys, monkeypatch):
    folder = a_policy(tmp_path / "policy", PENDULUM)
    (tmp_path / f"stranger_{at}.py").write_text(STRANGER.format(at=at))
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["play", "--policy", folder, "--env", f"stranger_{at}:fam", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    said = rf"error: {re.escape(sentence)} \(stranger_{at}.py, line \d+\)\.\n"
    assert re.fullmatch(said, capsys.readouterr().err)
    monkeypatch.setenv("MBML_TRACEBACK", "1")
    with pytest.raises(envs.FamilyError) as raised:
        main(arguments)
    assert raised.value.__cause__ is not None


def test_logs_need_an_environment(tmp_path, capsys):
    folder = a_policy(tmp_path / "logged", "umaze_goal", source="logged")
    assert main(["play", "--policy", folder]) == 2
    assert "say with --env in which environment" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["play", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    for words in ("--task STR Split (train, test or ood) and number from 0. (default: test/0)", "the films"):
        assert words in said


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A dataset whose tasks have numbers of the maze's sizes."""
    family = envs.get("umaze_goal")
    values = np.random.default_rng(0).uniform(-1, 1, 900).astype(np.float32)
    sizes = family.observation_size, family.action_size
    batch = from_episodes((20, 30), ("truncated", "none"), values, *sizes)
    ends = {"observation_size": sizes[0], "action_size": sizes[1]}
    return write(tmp_path_factory.mktemp("logs") / "dataset", {0: batch, 3: batch}, **ends)


def test_what_it_is_given_it_has_seen_before_it_acts(maze, logged, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    given = ["--given", str(logged), "--given-task", "3", "--given-transitions", "30"]
    said = played(capsys, "--policy", maze, "--episodes", "1", "--out", str(tmp_path), *given)
    assert f"given 30 transitions of task 3 of {logged}; most like training task train/" in said
    policy, family = AdaptivePolicy.load(maze, seed=0), envs.get("umaze_goal")
    rows = Dataset.open(logged).task(3)
    for i in range(30):
        ends = rows.terminated[i], rows.truncated[i]
        policy.observe(rows.observation[i], rows.action[i], rows.reward[i], rows.next_observation[i], *ends)
    policy.begin_episode()
    env = family.environment(family.tasks("test")[0], HORIZON)
    observation, _ = env.reset(seed=0)
    total = 0.0
    for _ in range(HORIZON):
        action = policy.act(observation)
        following, reward, *_ = env.step(action)
        policy.observe(observation, action, reward, following)
        observation, total = following, total + float(reward)
    assert returns_in(said) == pytest.approx([total], abs=0.051)
    weights = policy.belief.tasks
    assert weights is not None
    assert f", {weights.max():.0%}\n" in said.split("episode 1")[1]


def test_what_cannot_be_given(maze, logged, tmp_path, capsys):
    changed = shutil.copytree(logged, tmp_path / "changed")
    rows = Dataset.open(logged).task(0)
    others = write(tmp_path / "others", {0: replace(rows, reward=rows.reward + 1)})
    shutil.copy(others / "task=000/part-0000.arrow", changed / "task=000/part-0000.arrow")
    for more, sentence in (
        (["--given", str(logged.parent)], f"is no complete dataset .* give {logged}"),
        (["--given", str(logged), "--given-task", "1"], "task"),
        (["--given", str(changed)], r"part-0000\.arrow has another SHA-256 than meta\.json says"),
        (
            ["--given", str(write(tmp_path / "other", {0: example()}))],
            "has observations and actions of .* those of the policy have",
        ),
    ):
        assert main(["play", "--policy", maze, "--out", str(tmp_path / "out"), *more]) == 2
        error = capsys.readouterr().err
        assert re.search(sentence, error), error
        assert len(error.splitlines()) == 1
