"""Presets are runnable, `paper` holds the authors' numbers, and what cannot be run is refused in one sentence."""

from dataclasses import replace

import pytest

from mbml import envs
from mbml.registry import PRESETS as NAMES
from mbml.registry import UnknownName
from mbml.settings import ConfigError, changed
from pipeline.command import Run
from pipeline.config import Place
from pipeline.presets import preset

# Paper, appendix: N, BCQ iterations, reward threshold, horizon, K, K_test.
AUTHORS = {
    "ant_dir": (200_000, 125_000, 0.1, 200, 10, 8),
    "ant_goal": (300_000, 100_000, 0.1, 200, 10, 8),
    "half_cheetah_vel": (60_000, 50_000, 0.05, 1000, 10, 8),
    "humanoid_dir": (600_000, 250_000, 0.2, 200, 10, 8),
    "umaze_goal": (30_000, 50_000, 0.02, 300, 10, 10),
    "walker_param": (300_000, 100_000, 0.1, 200, 30, 8),
}


@pytest.mark.parametrize("env", envs.FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_can_be_run_in_every_environment(env, name):
    config = preset(env, name)
    config.check()
    assert (config.env, config.preset) == (env, name)


@pytest.mark.parametrize("env", envs.FAMILIES)
def test_paper_numbers_by_environment(env):
    config, distribution = preset(env, "paper"), envs.get(env)
    steps, iterations, threshold, horizon, train, test = AUTHORS[env]
    assert config.collect.steps == steps
    assert config.teach.iterations == iterations
    assert config.relabel.reward_threshold == threshold
    assert config.relabel.next_observation_threshold == 0.2
    assert (config.horizon, config.train_tasks, config.test_tasks) == (0, 0, 0)  # the environment's own
    assert distribution.horizon == horizon
    assert (len(distribution.tasks("train")), len(distribution.tasks("test"))) == (train, test)


@pytest.mark.parametrize("env", envs.FAMILIES)
def test_laptop_gives_all_learners_the_same_schedule_and_networks(env):
    config = preset(env, "laptop")
    ours, rivals = config.distill, (config.contextual_bcq, config.batch_pearl)
    for name in ("steps", "snapshot_every", "batch_size", "learning_rate", "final_learning_rate"):
        assert {getattr(rival, name) for rival in rivals} == {getattr(ours, name)}
    assert config.contextual_bcq.student == ours.student
    assert {rival.context_size for rival in rivals} == {2 * ours.context_size}
    assert set(config.batch_pearl.hidden) == set(ours.student.value_hidden)


@pytest.mark.parametrize("env", ["half_cheetah_vel", "umaze_goal"])
def test_paper_collection_evaluates_on_5000_steps(env):
    """Up to 5,000 steps of whole episodes."""
    assert preset(env, "paper").collect.evaluation_episodes == 5_000 // envs.get(env).horizon


@pytest.mark.parametrize("env", envs.FAMILIES)
def test_only_large_tables_are_sampled(env):
    config = preset(env, "paper")
    assert (config.relabel.pool > 0) == (envs.get(env).varies == "dynamics")


def test_presets_grow():
    for env in envs.FAMILIES:
        smoke, laptop, paper = (preset(env, name) for name in NAMES)
        for size in (
            lambda c: c.collect.steps,
            lambda c: c.teach.iterations,
            lambda c: c.distill.steps,
            lambda c: sum(c.distill.student.value_hidden),
        ):
            assert size(smoke) < size(laptop) <= size(paper)


SMALL_FAMILY = """
import gymnasium
from mbml.envs import family
make = lambda gravity: gymnasium.make("Pendulum-v1", g=float(gravity[0]))
small = family("small", make, train=[1.0, 2.0], test=[3.0], horizon=10)
"""


def test_smoke_takes_no_more_than_a_small_family_of_the_users_has(tmp_path, monkeypatch):
    (tmp_path / "small_family.py").write_text(SMALL_FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    config = preset("small_family:small", "smoke")
    config.check()
    assert (config.horizon, config.train_tasks, config.test_tasks) == (10, 2, 1)
    assert ":" not in str(Run(config, Place()).out())


def test_unknown_names_are_refused_with_the_valid_ones():
    with pytest.raises(ConfigError) as caught:
        preset("umaze_goal", "desktop")
    assert all(name in str(caught.value) for name in ("desktop", *NAMES))
    with pytest.raises(UnknownName) as unknown:
        preset("maze", "smoke")
    assert all(name in str(unknown.value) for name in ("maze", *envs.FAMILIES))


BAD = [
    ("train_tasks", 11),
    ("train_tasks", -1),
    ("train_tasks", 1),
    ("test_tasks", 11),
    ("horizon", 301),
    ("horizon", -5),
    ("methods", ()),
    ("methods", ("full", "fulll")),
    ("distill_seeds", ()),
    ("distill_cpus", 0),
    ("learner_gpus", -0.5),
    ("learner_gpus", 2.0),
    ("cuda_graphs", True),
    ("collect.steps", 0),
    ("collect.warmup_steps", 0),
    ("collect.epoch_steps", -1),
    ("collect.evaluation_every", 0),
    ("collect.evaluation_episodes", 0),
    ("collect.tasks_per_actor", 0),
    ("collect.sac.batch_size", 0),
    ("teach.iterations", 0),
    ("teach.evaluation_every", 0),
    ("teach.evaluation_episodes", 0),
    ("bcq.batch_size", 0),
    ("bcq.target_candidates", 0),
    ("models.tasks_per_actor", -1),
    ("models.reward.members", 0),
    ("models.reward.steps", 0),
    ("distill.steps", 0),
    ("distill.snapshot_every", 0),
    ("distill.context_size", 0),
    ("distill.batch_size", 0),
    ("contextual_bcq.steps", 0),
    ("contextual_bcq.vae_encoder_hidden", (8, 0)),
    ("batch_pearl.tasks_per_step", 0),
    ("batch_pearl.reward_scale", 0.0),
    ("metagenrl.segments", 0),
    ("rllib.updates", 0),
    ("rllib.algorithms", ("dqn",)),
    ("evaluate.repeats", 0),
    ("evaluate.reference_episodes", 0),
    ("evaluate.skipped_episodes", 3),
    ("evaluate.skipped_episodes", -1),
    ("collect.updates_per_step", -1.0),
    ("collect.sac.learning_rate", 0.0),
    ("collect.sac.initial_alpha", 0.0),
    ("collect.sac.discount", 1.5),
    ("bcq.acting_candidates", 0),
    ("bcq.learning_rate", -1.0),
    ("models.reward.batch_size", 0),
    ("models.next_observation.members", 0),
    ("models.next_observation.steps", 0),
    ("relabel.source", "truth"),
    ("relabel.pool", -1),
    ("relabel.reward_threshold", -0.1),
    ("distill.partners", -1),
    ("distill.tasks_per_step", 1),
    ("collect.sac.target_entropy", 0.7),
    ("collect.sac.target_entropy", float("nan")),
    ("distill.hard_contexts", 0),
    ("distill.learning_rate", 0.0),
    ("distill.student.encoder.embedding_size", 0),
    ("distill.student.acting_candidates", 0),
    ("methods", ("full", "full")),
    ("distill_seeds", (0, 0)),
    ("seed", 10**20),
    ("distill_seeds", (10**20,)),
    ("distill.learning_rate", float("inf")),
    ("distill.learning_rate", float("nan")),
    ("distill.learning_rate", -1.0),
    ("rllib.learning_rate", float("nan")),
    ("warmstart.policy_rate", 0.0),
    ("warmstart.imitation.target", "tanh"),
    ("teacher", "dqn"),
    ("encoder", "sum"),
]


def assert_refused(path, value):
    with pytest.raises(ConfigError) as caught:
        changed(preset("umaze_goal", "smoke"), {path: value}).check()
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert path.split(".")[-1].replace("_", "-") in sentence.replace("_", "-")


@pytest.mark.parametrize(("path", "value"), BAD)
def test_bad_fields_are_refused_in_one_sentence(path, value):
    assert_refused(path, value)


def test_an_unknown_environment_is_refused_by_the_check_too():
    with pytest.raises(ValueError, match="umaze_goal"):
        replace(preset("umaze_goal", "smoke"), env="maze").check()


def test_methods_that_an_environment_rules_out_are_refused():
    for env, method, word in (("umaze_goal", "metagenrl", "ant_dir"), ("ant_dir", "ground_truth", "reward")):
        with pytest.raises(ConfigError, match=word):
            replace(preset(env, "smoke"), methods=(method,)).check()
    replace(preset("ant_dir", "smoke"), methods=("full", "metagenrl")).check()
    with pytest.raises(ConfigError, match="ant_dir"):
        changed(preset("ant_dir", "smoke"), {"relabel.source": "ground_truth"}).check()
