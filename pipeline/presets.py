"""Sizes of a run: smoke, laptop and paper, for every environment."""

from __future__ import annotations

from typing import Any

from actors.rllib_trainer import RLlibConfig
from mbml import envs
from mbml.baselines.batch_pearl import BatchPEARLConfig
from mbml.baselines.contextual_bcq import ContextualBCQConfig
from mbml.baselines.metagenrl import MetaGenRLConfig
from mbml.collect import CollectConfig
from mbml.distill import DistillConfig
from mbml.encoders import EncoderConfig
from mbml.evaluate import EvaluateConfig
from mbml.models import EnsembleConfig
from mbml.relabel import RelabelConfig
from mbml.sac import SACConfig
from mbml.students import StudentConfig
from mbml.teachers import TEACHERS
from mbml.teachers.bcq import BCQConfig
from mbml.warmstart import ImitationConfig, WarmStartConfig
from pipeline.config import BCQStage, ConfigError, ModelsConfig, PipelineConfig
from pipeline.methods import changed

NAMES = ("smoke", "laptop", "paper")


def preset(env: str, name: str) -> PipelineConfig:
    """The configuration of preset `name` for environment `env`.

    Raises UnknownEnvironment or ConfigError, naming the valid choices.
    """
    family = envs.get(env)
    if name not in NAMES:
        raise ConfigError(f"There is no preset {name!r}; choose one of {', '.join(NAMES)}.")
    base = {"smoke": _smoke, "laptop": _laptop, "paper": _paper}[name](env)
    return changed(base, {_path(path): value for path, value in family.presets.get(name, {}).items()})


def _path(path: str) -> str:
    """Where a setting of a family stands in the configuration."""
    if path == "bcq.target_candidates":
        return "bcq.learner.target_candidates"
    return path.replace("teach.", "bcq.") if path.startswith("teach.") else path


def _paper(env: str) -> PipelineConfig:
    return PipelineConfig(env=env, preset="paper")


def _smoke(env: str) -> PipelineConfig:
    """Every stage in about a minute; the numbers mean nothing."""
    ensemble = EnsembleConfig(members=2, hidden=(16,), steps=40, batch_size=32, learning_rate=1e-3)
    student = StudentConfig(
        encoder=EncoderConfig(hidden=(16, 16), embedding_size=4),
        value_hidden=(16, 16),
        decoder_hidden=(16, 16),
        perturbation_hidden=(16, 16),
        acting_candidates=2,
    )
    schedule: dict[str, Any] = {"steps": 20, "snapshot_every": 10, "context_size": 8, "batch_size": 16}
    return PipelineConfig(
        env=env,
        preset="smoke",
        horizon=30,
        train_tasks=3,
        test_tasks=2,
        collect=CollectConfig(
            steps=240,
            warmup_steps=120,
            epoch_steps=60,
            evaluation_episodes=1,
            tasks_per_actor=2,
            sac=SACConfig(policy_hidden=(16, 16), critic_hidden=(16, 16), batch_size=16),
        ),
        bcq=BCQStage(
            iterations=40,
            evaluation_every=20,
            evaluation_episodes=1,
            tasks_per_actor=2,
            learner=changed(BCQConfig(), TEACHERS["bcq"].presets["smoke"]),
        ),
        models=ModelsConfig(reward=ensemble, next_observation=ensemble, tasks_per_actor=2),
        relabel=RelabelConfig(reward_threshold=5.0, next_observation_threshold=5.0, pool=100),
        distill=DistillConfig(student=student, **schedule),
        contextual_bcq=ContextualBCQConfig(
            student=student, vae_encoder_hidden=(16, 16), target_candidates=2, **schedule
        ),
        batch_pearl=BatchPEARLConfig(
            encoder=EncoderConfig(hidden=(16, 16), embedding_size=4), hidden=(16, 16), tasks_per_step=4, **schedule
        ),
        metagenrl=MetaGenRLConfig(
            hidden=(16, 16),
            objective_hidden=(8, 8),
            lstm=4,
            steps=8,
            evaluation_every=4,
            evaluation_episodes=1,
            segments=4,
            objective_segments=4,
            segment_length=5,
        ),
        rllib=RLlibConfig(updates=4, batch_size=16, hidden=(16, 16), evaluation_episodes=1),
        evaluate=EvaluateConfig(episodes=3, skipped_episodes=1, reference_episodes=1),
        warmstart=WarmStartConfig(
            initial_steps=60,
            imitation=ImitationConfig(steps=20, batch_size=16),
            online=CollectConfig(
                steps=180,
                warmup_steps=60,
                epoch_steps=60,
                evaluation_episodes=1,
                tasks_per_actor=2,
                sac=SACConfig(policy_hidden=(16, 16), critic_hidden=student.value_hidden, batch_size=16),
            ),
        ),
    )


def _laptop(env: str) -> PipelineConfig:
    """Networks and learning rates that learn in minutes on two cores; every environment starts from here."""
    student = StudentConfig(
        value_hidden=(256, 256, 256), decoder_hidden=(256, 256, 256), perturbation_hidden=(256, 256, 256)
    )
    schedule: dict[str, Any] = {
        "steps": 8_000,
        "snapshot_every": 1_000,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "final_learning_rate": 0.1,
    }
    return PipelineConfig(
        env=env,
        preset="laptop",
        collect=CollectConfig(
            steps=30_000,
            warmup_steps=2_000,
            epoch_steps=1_000,
            evaluation_every=2,
            evaluation_episodes=3,
            tasks_per_actor=5,
            sac=SACConfig(
                policy_hidden=(128, 128),
                critic_hidden=(128, 128),
                critic_initialisation="torch",
                batch_size=128,
                learning_rate=1e-3,
                alpha_learning_rate=1e-3,
                initial_alpha=0.1,
            ),
        ),
        bcq=BCQStage(
            iterations=7_000,
            evaluation_every=1_000,
            evaluation_episodes=10,
            tasks_per_actor=5,
            learner=changed(BCQConfig(), TEACHERS["bcq"].presets["laptop"]),
        ),
        models=ModelsConfig(
            # One hidden layer as in the paper needs far more steps: its labels are five times as wrong here.
            reward=EnsembleConfig(members=5, hidden=(128, 128), steps=3_000, learning_rate=1e-3),
            next_observation=EnsembleConfig(members=5, hidden=(128, 128), steps=4_000, learning_rate=1e-3),
            tasks_per_actor=5,
        ),
        distill=DistillConfig(
            student=student,
            context_size=32,
            kl_weight=0.01,
            partners=3,
            hard_contexts=4,
            **schedule,
        ),
        # The baselines have the same networks, schedule and number of own context rows where those exist for them.
        contextual_bcq=ContextualBCQConfig(
            student=student,
            vae_encoder_hidden=student.decoder_hidden,
            context_size=64,
            target_candidates=5,
            tau=0.01,
            **schedule,
        ),
        batch_pearl=BatchPEARLConfig(hidden=(256, 256, 256), context_size=64, tasks_per_step=10, **schedule),
        metagenrl=MetaGenRLConfig(
            hidden=(128, 128), steps=2_000, evaluation_every=20, segments=50, objective_segments=50
        ),
        rllib=RLlibConfig(updates=2_000, batch_size=128, hidden=(128, 128), learning_rate=1e-3),
        evaluate=EvaluateConfig(repeats=2),
        warmstart=WarmStartConfig(
            initial_steps=1_500,
            policy_rate=0.3,
            imitation=ImitationConfig(steps=2_000, batch_size=128, learning_rate=1e-3),
            online=CollectConfig(
                steps=16_000,
                warmup_steps=1_000,
                epoch_steps=500,
                evaluation_every=2,
                evaluation_episodes=3,
                tasks_per_actor=5,
                sac=SACConfig(
                    policy_hidden=(128, 128),
                    critic_hidden=student.value_hidden,
                    critic_initialisation="torch",
                    batch_size=64,
                    learning_rate=1e-3,
                    alpha_learning_rate=1e-3,
                    initial_alpha=0.1,
                ),
            ),
        ),
        distill_cpus=2,
    )
