"""From a finished run to a policy's folder, by the run and by export-policy: that it acts and says enough."""

import json
from dataclasses import replace

import numpy as np
import pytest

from actors.artefacts import read_json, snapshot_of
from actors.store import Store
from mbml import AdaptivePolicy, envs
from mbml.settings import changed
from pipeline.command import main
from pipeline.config import ConfigError, Place
from pipeline.plan import plan
from pipeline.presets import preset
from pipeline.results import gather
from pipeline.run import hand_over, report
from pipeline.scheduler import execute

ENV = "umaze_goal"
METHODS = ("evidence", "bank", "full", "contextual_bcq", "batch_pearl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, embedded_ray):
    """A smoke run of one method of every kind of policy: its plan and store."""
    store = tmp_path_factory.mktemp("store")
    jobs = plan(replace(preset(ENV, "smoke"), methods=METHODS))
    outcome = execute(list(jobs.jobs.values()), str(store), log=lambda line: None)
    assert not outcome.failed
    return jobs, Store(store)


def export(store, folder, *options):
    """`export-policy` of the smoke run; its exit code."""
    common = ["--env", ENV, "--preset", "smoke", "--store", store.url, "--out", str(folder), "--no-onnx"]
    return main(["export-policy", *common, *options])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_s_policy_is_exported_and_acts(finished, tmp_path, method):
    jobs, store = finished
    assert export(store, tmp_path / "policy", "--method", method) == 0
    policy = AdaptivePolicy.load(tmp_path / "policy")
    about = policy.description
    trained = next(run for run in jobs.runs if run.variant.label == method)
    step = 1 if method == "bank" else 20
    weights = snapshot_of(store.fetch(*trained.trained), step)
    assert (tmp_path / "policy" / "policy.safetensors").read_bytes() == weights.read_bytes()
    assert (about.training.method, about.training.seed, about.training.step) == (method, 0, step)
    scores = read_json(store.fetch(*trained.evaluations[step]) / "scores.json")
    for score in about.scores:
        assert score.returns == pytest.approx(scores[score.split]["score"])
        assert np.isfinite(score.references["random"])
    assert [score.split for score in about.scores] == ["test", "train"]
    assert about.protocol == jobs.config.evaluate.protocol()
    assert about.inference.untold == (method in ("evidence", "bank"))
    assert [task.parameter for task in about.tasks] == [t.vector.tolist() for t in envs.get(ENV).tasks("train")[:3]]
    assert about.data.rows == 3 * 240
    env = envs.get(ENV).environment(envs.get(ENV).tasks("test")[0], 30)
    observation, _ = env.reset(seed=0)
    ended = False
    while not ended:
        action = policy.act(observation)
        assert env.action_space.contains(action)
        following, reward, terminated, truncated, _ = env.step(action)
        policy.observe(observation, action, reward, following, terminated, truncated)
        observation, ended = following, terminated or truncated
    assert 0 <= policy.unfamiliarity <= 1


def test_two_exports_are_the_same_and_say_what_the_data_were(finished, tmp_path):
    _, store = finished
    for name in ("a", "b"):
        assert export(store, tmp_path / name, "--method", "full") == 0
    first, second = ((tmp_path / name / "policy.json").read_bytes() for name in ("a", "b"))
    assert first == second
    other = changed(preset(ENV, "smoke"), {"train_tasks": 2})
    assert json.loads(first)["data"]["sha256"] != ""
    with pytest.raises(ConfigError, match="no finished run"):
        report(other, Place(store=store.url), tmp_path / "c", lambda line: None)


def test_a_run_leaves_the_folder_beside_its_report(finished, tmp_path):
    jobs, store = finished
    results = hand_over(jobs, store, gather(jobs, store), tmp_path)
    chosen, about = results.run["policy"], AdaptivePolicy.load(tmp_path / "policy").description
    assert (about.training.method, about.training.seed, about.training.step) == (
        chosen["method"],
        chosen["seed"],
        chosen["step"],
    )
    means = {score.split: np.mean(score.returns) for score in about.scores}
    assert means["train"] == pytest.approx(chosen["score"])


def test_what_cannot_be_exported_is_one_sentence(finished, tmp_path, capsys):
    _, store = finished
    assert export(store, tmp_path / "policy", "--method", "no_triplet") == 2
    assert "There is no finished run of umaze_goal, preset smoke" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    assert export(store, tmp_path / "full") == 2
    assert "thesis.tex, which is no part of a policy" in capsys.readouterr().err


def test_the_exported_policy_scores_as_the_run_said(finished, tmp_path):
    """Under the run's protocol on its unseen tasks, deterministic, as against drawn: near, and far from nothing."""
    _, store = finished
    assert export(store, tmp_path / "policy", "--method", "batch_pearl") == 0
    family, config = envs.get(ENV), preset(ENV, "smoke")
    policy = AdaptivePolicy.load(tmp_path / "policy", entities=2)
    tasks = [family.environment(task, 30) for task in family.tasks("test")[:2]]
    returns = np.zeros((config.evaluate.episodes, 2))
    for episode in returns:
        observations = np.stack([env.reset(seed=i)[0] for i, env in enumerate(tasks)])
        for _ in range(30):
            actions = policy.act(observations)
            steps = [env.step(action) for env, action in zip(tasks, actions, strict=True)]
            following, rewards = np.stack([s[0] for s in steps]), np.array([s[1] for s in steps])
            policy.observe(observations, actions, rewards, following, truncated=[bool(s[3]) for s in steps])
            observations = following
            episode += rewards
    said = next(score for score in policy.description.scores if score.split == "test").returns
    np.testing.assert_allclose(returns[config.evaluate.skipped_episodes :].mean(0), said, rtol=0.25)
