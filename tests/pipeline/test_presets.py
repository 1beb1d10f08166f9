"""Presets are runnable, `paper` holds the authors' numbers, and what cannot be run is refused in one sentence."""

from dataclasses import replace

import pytest

from mbml import envs
from pipeline.config import _RULES, ConfigError, _leaves
from pipeline.methods import changed
from pipeline.presets import NAMES, preset

# Section 13.1: N, BCQ iterations, reward threshold, horizon, K, K_test.
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
    assert config.bcq.iterations == iterations
    assert config.relabel.reward_threshold == threshold
    assert config.relabel.next_observation_threshold == 0.2
    assert (config.horizon, config.train_tasks, config.test_tasks) == (0, 0, 0)  # the environment's own
    assert distribution.horizon == horizon
    assert (len(distribution.tasks("train")), len(distribution.tasks("test"))) == (train, test)


@pytest.mark.parametrize("env", envs.FAMILIES)
def test_paper_numbers_common_to_all(env):
    """Section 13.2."""
    config = preset(env, "paper")
    collect, sac = config.collect, config.collect.sac
    assert (collect.warmup_steps, collect.epoch_steps, collect.updates_per_step) == (10_000, 1_000, 1.0)
    assert (sac.policy_hidden, sac.critic_hidden, sac.critic_initialisation) == ((256,) * 2, (1024,) * 7, "rlkit")
    assert (sac.batch_size, sac.learning_rate, sac.alpha_learning_rate) == (256, 3e-4, 3e-4)
    assert (sac.initial_alpha, sac.discount, sac.tau) == (1.0, 0.99, 0.005)

    bcq = config.bcq.learner
    assert (config.bcq.evaluation_every, config.bcq.evaluation_episodes) == (5_000, 10)
    assert (bcq.hidden, bcq.vae_hidden, bcq.batch_size, bcq.learning_rate) == ((400, 300), (750, 750), 100, 3e-4)
    assert (bcq.target_candidates, bcq.acting_candidates) == (10, 10)
    assert (bcq.discount, bcq.tau, bcq.minimum_weight, bcq.kl_weight) == (0.99, 0.005, 0.75, 0.5)

    reward, following = config.models.reward, config.models.next_observation
    assert (reward.members, reward.hidden, reward.steps) == (20, (128,), 4_000)
    assert (following.members, following.hidden, following.steps) == (20, (256,) * 6, 20_000)
    assert {m.batch_size for m in (reward, following)} == {128}
    assert {m.learning_rate for m in (reward, following)} == {3e-4}

    distill, student = config.distill, config.distill.student
    assert (student.encoder.hidden, student.encoder.embedding_size, student.acting_candidates) == ((200,) * 3, 20, 10)
    depths = [len(hidden) for hidden in (student.value_hidden, student.decoder_hidden, student.perturbation_hidden)]
    assert depths == [9, 7, 8]
    assert set(student.value_hidden + student.decoder_hidden + student.perturbation_hidden) == {1024}
    assert (distill.steps, distill.snapshot_every) == (100_000, 10_000)
    assert (distill.batch_size, distill.context_size, distill.learning_rate) == (128, 64, 3e-4)
    assert (distill.kl_weight, distill.margin, distill.triplet_weight) == (0.1, 2.0, 1.0)
    assert (distill.partners, distill.hard_contexts, distill.hard_reduction) == (0, 10, "sum")
    assert (config.evaluate.episodes, config.evaluate.skipped_episodes) == (5, 2)


@pytest.mark.parametrize("env", envs.FAMILIES)
def test_paper_numbers_of_the_baselines(env):
    """Sections 6.1 and 6.2, and the PEARL rows of section 13.1."""
    config = preset(env, "paper")
    rival, pearl = config.contextual_bcq, config.batch_pearl
    assert rival.student == config.distill.student
    assert (rival.vae_encoder_hidden, rival.context_size, rival.batch_size) == ((1024,) * 7, 128, 128)
    assert (rival.steps, rival.learning_rate, rival.target_candidates, rival.tau) == (100_000, 3e-4, 10, 0.005)
    assert (rival.encoder_losses, rival.kl_weight) == ("critic_and_vae", 0.0)
    context, tasks, weight = {
        "ant_dir": (256, 4, 0.1),
        "ant_goal": (256, 10, 1.0),
        "half_cheetah_vel": (100, 16, 0.1),
        "humanoid_dir": (256, 16, 0.1),
        "umaze_goal": (128, 16, 0.1),
        "walker_param": (100, 16, 0.1),
    }[env]
    assert (pearl.context_size, pearl.tasks_per_step, pearl.kl_weight) == (context, tasks, weight)
    assert (pearl.encoder.embedding_size, pearl.hidden) == (5, (300,) * 3)
    assert (pearl.batch_size, pearl.reward_scale) == (256, 5.0)
    assert (pearl.steps, pearl.learning_rate, pearl.policy_regulariser) == (100_000, 3e-4, 1e-3)
    assert config.metagenrl.hidden == (350, 350)


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
    """Section 1.3: up to 5,000 steps of whole episodes."""
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
            lambda c: c.bcq.iterations,
            lambda c: c.distill.steps,
            lambda c: sum(c.distill.student.value_hidden),
        ):
            assert size(smoke) < size(laptop) <= size(paper)


def test_unknown_names_are_refused_with_the_valid_ones():
    with pytest.raises(ConfigError) as caught:
        preset("umaze_goal", "desktop")
    assert all(name in str(caught.value) for name in ("desktop", *NAMES))
    with pytest.raises(ValueError) as unknown:
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
    ("bcq.iterations", 0),
    ("bcq.evaluation_every", 0),
    ("bcq.evaluation_episodes", 0),
    ("bcq.tasks_per_actor", 0),
    ("bcq.learner.batch_size", 0),
    ("bcq.learner.target_candidates", 0),
    ("models.tasks_per_actor", 0),
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


UNCHECKED = [
    ("collect.updates_per_step", -1.0),
    ("collect.sac.learning_rate", 0.0),
    ("collect.sac.initial_alpha", 0.0),
    ("collect.sac.discount", 1.5),
    ("bcq.learner.acting_candidates", 0),
    ("bcq.learner.learning_rate", -1.0),
    ("models.reward.batch_size", 0),
    ("models.next_observation.members", 0),
    ("models.next_observation.steps", 0),
    ("relabel.source", "truth"),
    ("relabel.pool", -1),
    ("relabel.reward_threshold", -0.1),
    ("distill.partners", -1),
    ("distill.hard_contexts", 0),
    ("distill.learning_rate", 0.0),
    ("distill.student.encoder.embedding_size", 0),
    ("distill.student.acting_candidates", 0),
    ("methods", ("full", "full")),
    ("distill_seeds", (0, 0)),
]


@pytest.mark.parametrize(("path", "value"), UNCHECKED)
def test_more_bad_fields_are_refused_in_one_sentence(path, value):
    assert_refused(path, value)


def test_every_number_of_a_configuration_is_checked():
    """But those whose every value is meaningful, and those with a sentence of their own."""
    free = {"seed", "distill_seeds", "skipped_episodes", "episodes", "horizon", "train_tasks", "test_tasks"}
    config = preset("umaze_goal", "laptop")
    for path, value in _leaves("", config):
        name = path.rpartition(".")[2]
        entries = value if isinstance(value, tuple) else (value,)
        if name not in free and any(isinstance(v, int | float) and not isinstance(v, bool) for v in entries):
            assert name in _RULES, path


def test_methods_that_an_environment_rules_out_are_refused():
    for env, method, word in (("umaze_goal", "metagenrl", "ant_dir"), ("ant_dir", "ground_truth", "reward")):
        with pytest.raises(ConfigError, match=word):
            replace(preset(env, "smoke"), methods=(method,)).check()
    replace(preset("ant_dir", "smoke"), methods=("full", "metagenrl")).check()
    with pytest.raises(ConfigError, match="ant_dir"):
        changed(preset("ant_dir", "smoke"), {"relabel.source": "ground_truth"}).check()
