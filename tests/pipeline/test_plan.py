"""The plan of a run: which jobs there are, and that keys change with what is computed and with nothing else."""

from collections import Counter
from dataclasses import replace

import pytest

from mbml import envs
from mbml.methods import METHODS, Variant
from mbml.registry import PRESETS
from mbml.settings import ConfigError, changed
from pipeline.config import check_warmstart
from pipeline.plan import plan, plan_warmstart
from pipeline.presets import preset

ABLATIONS = [name for name, method in METHODS.items() if method.learner == "distill"]


def of_stage(result, stage):
    return [job for job in result.jobs.values() if job.stage.name == stage]


def keys(config, stage):
    return [job.ref.key for job in of_stage(plan(config), stage)]


def test_the_same_configuration_gives_the_same_keys():
    assert keys(preset("umaze_goal", "laptop"), "distill") == keys(preset("umaze_goal", "laptop"), "distill")


def test_a_change_reaches_what_depends_on_it_and_nothing_before():
    config = preset("umaze_goal", "laptop")
    margin = changed(config, {"distill.margin": 4.0})
    for stage in ("collect", "teach", "models", "relabel"):
        assert keys(config, stage) == keys(margin, stage)
    assert keys(config, "distill") != keys(margin, "distill")
    threshold = changed(config, {"relabel.reward_threshold": 0.5})
    assert keys(config, "models") == keys(threshold, "models")
    assert keys(config, "relabel") != keys(threshold, "relabel")
    assert keys(config, "distill") != keys(threshold, "distill")
    longer = changed(config, {"collect.steps": 31_000})
    for stage in ("collect", "teach", "models", "relabel", "distill", "evaluate"):
        assert not set(keys(config, stage)) & set(keys(longer, stage))


def test_seed_and_environment_change_everything():
    config = preset("umaze_goal", "laptop")
    for other in (replace(config, seed=1), preset("ant_goal", "laptop")):
        assert not plan(config).jobs.keys() & plan(other).jobs.keys()


def test_preset_name_and_place_do_not_change_keys():
    config = preset("umaze_goal", "laptop")
    assert keys(config, "collect") == keys(replace(config, preset="mine"), "collect")
    own = replace(config, horizon=envs.get("umaze_goal").horizon)
    assert plan(config).jobs.keys() == plan(own).jobs.keys()


def test_jobs_come_after_those_that_they_need_and_have_names_of_their_own():
    result = plan(replace(preset("umaze_goal", "laptop"), methods=tuple(ABLATIONS), distill_seeds=(0, 1)))
    seen = set()
    for ref, job in result.jobs.items():
        assert seen.issuperset(job.inputs)
        seen.add(ref)
    assert len({job.name for job in result.jobs.values()}) == len(result.jobs)


def test_a_gpu_changes_the_learners_keys_and_where_they_run():
    config = preset("umaze_goal", "laptop")
    assert all(job.device == "cpu" and job.num_gpus == 0 for job in plan(config).jobs.values())
    learners = ("collect", "teach", "models", "distill")
    shared, captured = (
        plan(replace(config, learner_gpus=0.5, cuda_graphs=graphs)).jobs.values() for graphs in (False, True)
    )
    for job in shared:
        learns = job.stage.name in learners
        assert (job.num_gpus, job.device) == ((0.5, "cuda") if learns else (0.0, "cpu"))
        assert job.ref.key not in keys(config, job.stage.name)
    assert {job.stage.name for job in captured if getattr(job.spec, "cuda_graphs", False)} == set(learners) - {
        "distill"
    }
    whole = replace(config, learner_gpus=1.0)
    assert keys(whole, "distill") == [job.ref.key for job in shared if job.stage.name == "distill"]


def test_ablations_share_everything_up_to_distillation_and_neither_needs_no_tables():
    config = replace(preset("umaze_goal", "laptop"), methods=("full", "neither"), distill_seeds=(0, 1, 2))
    distilled = of_stage(plan(config), "distill")
    assert len({job.ref for job in distilled}) == 6
    for job in distilled:
        assert (job.spec.relabel is not None) == job.name.startswith("distill full")


def specs(result, label, stage):
    """Specifications of the jobs of a stage that the learner of a variant depends on."""
    wanted = [ref for run in result.runs if run.variant.label == label for ref in (run.trained, run.probes)]
    return [job.spec for job in result.needed(wanted) if job.stage.name == stage]


def test_an_ablation_differs_from_the_full_model_in_nothing_else():
    """The labels for ground_truth, the ensembles for no_ensemble, switches of the learner for the others."""
    config = replace(preset("umaze_goal", "laptop"), methods=tuple(ABLATIONS))
    result = plan(config)
    for label in ABLATIONS:
        assert specs(result, label, "collect") == specs(result, "full", "collect")
        assert specs(result, label, "teach") == specs(result, "full", "teach")
        (learner,) = specs(result, label, "distill")
        switches = {path.removeprefix("distill."): value for path, value in METHODS[label].changes.items()}
        expected = config.distill if label in ("ground_truth", "no_ensemble") else replace(config.distill, **switches)
        assert learner.config == expected
        assert (learner.seed, learner.tasks) == ("0/0", tuple(range(10)))
    for label in ("no_triplet", "no_ensemble"):
        assert [spec.config for spec in specs(result, label, "relabel")] == [config.relabel]
    assert specs(result, "neither", "relabel") == specs(result, "no_relabelling", "relabel") == []
    (truth,) = specs(result, "ground_truth", "relabel")
    assert truth.config == replace(config.relabel, source="ground_truth")
    assert specs(result, "ground_truth", "models") == []
    for single, several in zip(specs(result, "no_ensemble", "models"), specs(result, "full", "models"), strict=True):
        assert single.configs["reward"] == replace(several.configs["reward"], members=1)
        assert single.tasks == several.tasks


def test_baselines_need_the_batches_and_nothing_else():
    config = replace(preset("umaze_goal", "laptop"), methods=("contextual_bcq", "batch_pearl"))
    result = plan(config)
    for label, expected in (("contextual_bcq", config.contextual_bcq), ("batch_pearl", config.batch_pearl)):
        (learner,) = specs(result, label, "distill")
        assert (learner.learner, learner.config) == (label, expected)
        for stage in ("teach", "models", "relabel"):
            assert specs(result, label, stage) == []
    shared = {job.stage.name for job in result.shared()}  # what the scores stand beside
    assert shared == {"collect", "teach", "references", "models", "likelihood", "familiarity"}


def test_a_method_may_have_teachers_of_its_own_kind_and_their_references_stand_beside_the_run_s():
    config = changed(preset("umaze_goal", "laptop"), {"evidence.teacher": "td3_bc", "teacher": "bcq"})
    result = plan(config)
    kinds = {label: {spec.teacher for spec in specs(result, label, "teach")} for label in ("evidence", "full")}
    assert kinds == {"evidence": {"td3_bc"}, "full": {"bcq"}}
    assert specs(result, "evidence", "collect") == specs(result, "full", "collect")
    assert result.teachers == ["bcq", "td3_bc"]
    artefacts = result.artefacts
    likelihoods = [ref for kind in result.teachers for ref in artefacts[f"likelihood of {kind}"]]
    for refs in (artefacts["references"], likelihoods):
        taught = [result.jobs[ref].spec.teach for ref in refs]
        assert [{result.jobs[ref].spec.teacher for ref in refs} for refs in taught] == [{"bcq"}, {"td3_bc"}]
    assert plan(changed(config, {"evidence.teacher": None})).teachers == ["bcq"]


def test_guides_of_other_kinds_are_those_that_other_methods_learn_from():
    config = changed(preset("half_cheetah_vel", "laptop"), {"evidence.teacher": "td3_bc", "evidence.besides": ("bcq",)})
    result = plan(config)
    learners = {run.variant.label: result.jobs[run.trained] for run in result.runs}
    (returns, taught), *more = learners["evidence"].spec.besides
    assert not more
    assert taught == learners["full"].spec.teach
    assert returns == result.artefacts["references"][1 - result.teachers.index("td3_bc")]
    assert {returns, *taught} < set(learners["evidence"].inputs)
    without = plan(changed(config, {"evidence.besides": ()}))
    trained = {run.trained for run in result.runs if run.variant.label == "evidence"}
    assert set(result.jobs) - set(without.jobs) == {ref for ref in result.jobs if trained & _above(result, ref)}
    itself = plan(changed(config, {"evidence.besides": ("td3_bc",)}))
    assert not any(specs(found, "evidence", "distill")[0].besides for found in (without, itself))


def _above(result, ref):
    """The artefact and all that it is made from."""
    return {ref}.union(*(_above(result, other) for other in result.jobs[ref].inputs))


def test_the_last_snapshot_is_looked_at_on_four_unseen_tasks_whatever_the_protocol():
    config = replace(preset("umaze_goal", "laptop"), methods=("full", "batch_pearl"))
    result = plan(config)
    for run in result.runs:
        assert run.trace
        job = result.jobs[run.trace]
        assert (job.spec.trained, job.spec.step) == (run.trained, max(run.evaluations))
        assert job.spec.test == (0, 1, 2, 3)
        assert run.trace in run.artefacts()
    assert keys(changed(config, {"evaluate.episodes": 7}), "trace") == keys(config, "trace")
    assert of_stage(plan(replace(config, test_tasks=2)), "trace")[0].spec.test == (0, 1)


def test_a_sweep_over_one_number_shares_all_but_the_learners():
    config = replace(preset("umaze_goal", "laptop"), distill_seeds=(0, 1))
    variants = [Variant(f"margin={m}", "full", {"distill.margin": m}) for m in (0.0, 2.0, 4.0)]
    result = plan(config, variants)
    stages = Counter(job.stage.name for job in result.jobs.values())
    assert (stages["relabel"], stages["distill"], stages["probe"], stages["trace"]) == (1, 6, 6, 6)
    assert [(run.variant.label, run.seed) for run in result.runs[:3]] == [
        ("margin=0.0", 0),
        ("margin=0.0", 1),
        ("margin=2.0", 0),
    ]
    as_pipeline = plan(
        replace(config, methods=("full",))
    )  # margin 2 is the default: the same artefacts as the full model's
    assert {run.trained for run in as_pipeline.runs} < {run.trained for run in result.runs}


def test_every_pooled_teacher_of_a_sweep_is_a_reference_and_the_learners_of_its_variant_have_it():
    kinds = ("td3_bc", "iql", None, "td3_bc")
    variants = [Variant(f"{i}: {kind}", "evidence", {"pooled.teacher": kind}) for i, kind in enumerate(kinds)]
    config = changed(preset("umaze_goal", "laptop"), {"distill_seeds": (0,)})
    result = plan(config, variants)
    assert list(result.pooled.values()) == ["0: td3_bc", "1: iql"]
    shown = list(result.pooled)
    learned_with = [result.jobs[run.trained].spec.pooled for run in result.runs]
    assert [pair and pair[0] for pair in learned_with] == [shown[0], shown[1], None, shown[0]]
    own = plan(changed(config, {"pooled.teacher": "iql"}), variants[:2])
    assert own.pooled == {shown[1]: "", shown[0]: "0: td3_bc"}


def test_rllib_has_a_job_for_each_algorithm_and_task():
    config = changed(preset("half_cheetah_vel", "laptop"), {"rllib.algorithms": ("bc", "iql")})
    jobs = of_stage(plan(config), "rllib")
    assert [(job.spec.algorithm, job.spec.task) for job in jobs] == [(a, t) for a in ("bc", "iql") for t in range(10)]
    assert all(len(job.inputs) == 1 for job in jobs)


def test_metagenrl_reads_the_first_task_alone():
    result = plan(replace(preset("ant_dir", "smoke"), methods=("metagenrl",)))
    (job,) = of_stage(result, "metagenrl")
    assert job.spec.task == 0
    assert len(job.inputs) == 1
    assert not result.runs


def test_walker_trains_next_state_ensembles_and_the_others_do_not():
    for env, expected in (("walker_param", {"reward", "next_observation"}), ("ant_dir", {"reward"})):
        models = of_stage(plan(preset(env, "laptop")), "models")[0]
        assert set(models.spec.configs) == expected


def test_a_sweep_over_the_data_replans_what_reads_it():
    config = preset("umaze_goal", "laptop")
    variants = [Variant(f"steps={n}", "full", {"collect.steps": n}) for n in (30_000, 20_000)]
    result = plan(config, variants)
    stages = Counter(job.stage.name for job in result.jobs.values())
    for stage in ("collect", "teach", "models"):
        assert stages[stage] == 4  # two stacks of tasks for each variant
    assert (stages["relabel"], stages["distill"]) == (2, 2)
    longer, shorter = (set(result.jobs[run.trained].inputs) for run in result.runs)
    assert not longer & shorter


def warm():
    return replace(preset("umaze_goal", "smoke"), methods=("full", "no_ensemble"))


def test_a_warm_start_plans_only_what_its_arms_need_and_shares_the_runs_artefacts():
    result = plan_warmstart(warm())
    stages = {job.stage.name for job in result.jobs.values()}
    assert stages == {"collect", "teach", "models", "relabel", "distill", "warmstart"}
    assert {ref for ref in result.jobs if ref.stage != "warmstart"} <= plan(warm()).jobs.keys()


def test_a_gpu_goes_to_every_arm():
    arms = of_stage(plan_warmstart(replace(warm(), learner_gpus=0.5)), "warmstart")
    assert {(job.num_gpus, job.device) for job in arms} == {(0.5, "cuda")}


def test_arms_from_scratch_do_not_depend_on_the_multi_task_policy():
    other = changed(warm(), {"distill.margin": 7.0, "warmstart.initial_steps": 90})
    for first, second in zip(plan_warmstart(warm()).arms, plan_warmstart(other).arms, strict=True):
        assert (first.jobs == second.jobs) == first.name.startswith("sac")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("env", envs.FAMILIES)
def test_every_preset_can_be_warm_started(env, name):
    config = preset(env, name)
    check_warmstart(config)
    assert [arm.name for arm in plan_warmstart(config).arms] == ["sac", "sac_two_batches", "warm_evidence", "warm_full"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmstart.online.sac.critic_hidden": (8, 8)}, "must be distill.student.value_hidden"),
        ({"distill.student.value_hidden": (8, 8)}, "must be distill.student.value_hidden"),
        ({"warmstart.online.warmup_steps": 180}, "must be below warmstart.online.steps"),
        ({"warmstart.snapshot": 7}, "snapshots of distill are taken every 10 steps up to 20"),
        ({"warmstart.snapshot": 30}, "snapshots of distill are taken every 10 steps up to 20"),
        ({"methods": ("contextual_bcq",)}, "no distilled value function"),
    ],
)
def test_a_warm_start_that_cannot_be_run_is_refused_in_one_sentence(changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        plan_warmstart(changed(warm(), changes))
    assert "\n" not in str(error.value)
