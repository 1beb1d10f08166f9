"""The plan of a run: which jobs there are, and that keys change with what is computed and with nothing else."""

from collections import Counter
from dataclasses import replace

from pipeline.graph import Graph
from pipeline.methods import ABLATIONS, METHODS, Variant, changed
from pipeline.presets import preset
from pipeline.stages import content_key, plan


def keys(config, stage):
    return [node.job.key for node in plan(config).nodes if node.job.stage == stage]


def test_the_same_configuration_gives_the_same_keys():
    assert keys(preset("umaze_goal", "laptop"), "distill") == keys(preset("umaze_goal", "laptop"), "distill")


def test_a_change_reaches_what_depends_on_it_and_nothing_before():
    config = preset("umaze_goal", "laptop")
    margin = replace(config, distill=replace(config.distill, margin=4.0))
    for stage in ("collect", "bcq", "models", "relabel"):
        assert keys(config, stage) == keys(margin, stage)
    assert keys(config, "distill") != keys(margin, "distill")
    threshold = replace(config, relabel=replace(config.relabel, reward_threshold=0.5))
    assert keys(config, "models") == keys(threshold, "models")
    assert keys(config, "relabel") != keys(threshold, "relabel")
    assert keys(config, "distill") != keys(threshold, "distill")
    longer = replace(config, collect=replace(config.collect, steps=31_000))
    for stage in ("collect", "bcq", "models", "relabel", "distill", "evaluate"):
        assert not set(keys(config, stage)) & set(keys(longer, stage))


def test_seed_and_environment_change_everything():
    config = preset("umaze_goal", "laptop")
    for other in (replace(config, seed=1), preset("ant_goal", "laptop")):
        everything = {node.job.key for node in plan(config).nodes}
        assert not everything & {node.job.key for node in plan(other).nodes}


def test_preset_name_and_place_do_not_change_keys():
    config = preset("umaze_goal", "laptop")
    assert keys(config, "collect") == keys(replace(config, preset="mine"), "collect")


def test_a_gpu_changes_the_learners_keys_and_where_they_run_but_no_key_of_a_cpu():
    config = preset("umaze_goal", "laptop")
    assert not any({"device", "cuda_graphs"} & node.job.payload.keys() for node in plan(config).nodes)
    learners = ("collect", "bcq", "models", "distill")
    shared, captured = (
        plan(replace(config, learner_gpus=0.5, cuda_graphs=graphs)).jobs.values() for graphs in (False, True)
    )
    for node in shared:
        assert node.num_gpus == (0.5 if node.job.stage in learners else 0.0)
        assert node.job.payload.get("device") == ("cuda" if node.job.stage in learners else None)
        assert node.job.key not in keys(config, node.job.stage)
    with_graphs = {node.job.stage for node in captured if "cuda_graphs" in node.job.payload}
    assert with_graphs == {"collect", "bcq", "models"}
    whole = replace(config, learner_gpus=1.0)
    assert keys(whole, "distill") == [node.job.key for node in shared if node.job.stage == "distill"]


def test_ablations_share_everything_up_to_distillation_and_neither_needs_no_tables():
    config = replace(preset("umaze_goal", "laptop"), methods=("full", "neither"), distill_seeds=(0, 1, 2))
    result = plan(config)
    Graph(result.nodes)  # unique names and artefacts, no circle
    distilled = [node.job for node in result.nodes if node.job.stage == "distill"]
    assert len(distilled) == 6
    assert len({job.key for job in distilled}) == 6
    for job in distilled:
        assert bool(job.inputs["relabel"]) == job.name.startswith("distill full")


def payloads(result, label, stage):
    """Payloads of the jobs of a stage that the run of a variant depends on."""
    wanted = [reference for run in result.runs if run.variant.label == label for reference in (run.trained, run.probes)]
    found = {}
    while wanted:
        reference = wanted.pop()
        if reference not in found:
            found[reference] = result.jobs[reference].job
            wanted += [ref for refs in found[reference].inputs.values() for ref in refs]
    chosen = [job.payload for (name, _), job in found.items() if name == stage]
    return sorted(chosen, key=lambda payload: payload.get("tasks", []))


def test_an_ablation_differs_from_the_full_model_in_nothing_else():
    """Section 5: the labels for ground_truth, the ensembles for no_ensemble, switches of the learner for the others."""
    config = replace(preset("umaze_goal", "laptop"), methods=tuple(ABLATIONS))
    result = plan(config)
    Graph(result.nodes)
    for label in ABLATIONS:
        assert payloads(result, label, "collect") == payloads(result, "full", "collect")
        assert payloads(result, label, "bcq") == payloads(result, "full", "bcq")
        (learner,) = payloads(result, label, "distill")
        switches = {path.removeprefix("distill."): value for path, value in METHODS[label].changes.items()}
        expected = config.distill if label in ("ground_truth", "no_ensemble") else replace(config.distill, **switches)
        assert learner["config"] == expected
        assert (learner["seed"], learner["tasks"]) == ("0/0", list(range(10)))
    for label in ("no_triplet", "no_ensemble"):
        assert [p["config"] for p in payloads(result, label, "relabel")] == [config.relabel]
    assert payloads(result, "neither", "relabel") == payloads(result, "no_relabelling", "relabel") == []
    (truth,) = payloads(result, "ground_truth", "relabel")
    assert truth["config"] == replace(config.relabel, source="ground_truth")
    assert payloads(result, "ground_truth", "models") == []
    for single, several in zip(
        payloads(result, "no_ensemble", "models"), payloads(result, "full", "models"), strict=True
    ):
        assert single["configs"]["reward"] == replace(several["configs"]["reward"], members=1)
        assert single["tasks"] == several["tasks"]


def test_baselines_need_the_batches_and_nothing_else():
    config = replace(preset("umaze_goal", "laptop"), methods=("contextual_bcq", "batch_pearl"))
    result = plan(config)
    for label, field in (("contextual_bcq", config.contextual_bcq), ("batch_pearl", config.batch_pearl)):
        (learner,) = payloads(result, label, "baseline")
        assert learner["config"] == field
        for stage in ("bcq", "models", "relabel"):
            assert payloads(result, label, stage) == []
    assert {node.job.stage for node in result.shared()} == {"collect", "bcq", "evaluate"}


def test_a_sweep_over_one_number_shares_all_but_the_learners():
    config = replace(preset("umaze_goal", "laptop"), distill_seeds=(0, 1))
    variants = [Variant(f"margin={m}", "full", {"distill.margin": m}) for m in (0.0, 2.0, 4.0)]
    result = plan(config, variants)
    Graph(result.nodes)
    stages = Counter(node.job.stage for node in result.nodes)
    assert (stages["relabel"], stages["distill"], stages["probe"]) == (1, 6, 6)
    assert [(run.variant.label, run.seed) for run in result.runs[:3]] == [
        ("margin=0.0", 0),
        ("margin=0.0", 1),
        ("margin=2.0", 0),
    ]
    as_pipeline = plan(config)  # margin 2 is the default: the same artefacts as the full model's
    assert {run.trained for run in as_pipeline.runs} < {run.trained for run in result.runs}


def test_rllib_has_a_job_for_each_algorithm_and_task():
    config = changed(preset("half_cheetah_vel", "laptop"), {"rllib.algorithms": ("bc", "iql")})
    jobs = [node.job for node in plan(config).nodes if node.job.stage == "rllib"]
    assert [(job.payload["algorithm"], job.payload["tasks"]) for job in jobs] == [
        (name, [task]) for name in ("bc", "iql") for task in range(10)
    ]
    assert all(len(job.inputs["collect"]) == 1 for job in jobs)


def test_metagenrl_reads_the_first_task_alone():
    result = plan(replace(preset("ant_dir", "smoke"), methods=("metagenrl",)))
    (job,) = [node.job for node in result.nodes if node.job.stage == "metagenrl"]
    assert job.payload["tasks"] == [0]
    assert not result.runs


def test_walker_trains_next_state_ensembles_and_the_others_do_not():
    for env, expected in (("walker_param", {"reward", "next_observation"}), ("ant_dir", {"reward"})):
        models = next(node.job for node in plan(preset(env, "laptop")).nodes if node.job.stage == "models")
        assert set(models.payload["configs"]) == expected


def test_a_key_ignores_the_order_of_a_payload():
    assert content_key("collect", {"a": 1, "b": 2}, {}) == content_key("collect", {"b": 2, "a": 1}, {})
    assert content_key("collect", {"a": 1}, {}) != content_key("collect", {"a": 2}, {})
    assert content_key("collect", {"a": 1}, {}) != content_key("collect", {"a": 1}, {"x": [("s", "k")]})


def test_a_sweep_over_the_data_replans_what_reads_it():
    config = preset("umaze_goal", "laptop")
    variants = [Variant(f"steps={n}", "full", {"collect.steps": n}) for n in (30_000, 20_000)]
    result = plan(config, variants)
    Graph(result.nodes)
    stages = Counter(node.job.stage for node in result.nodes)
    for stage in ("collect", "bcq", "models"):
        assert stages[stage] == 4  # two stacks of tasks for each variant
    assert (stages["relabel"], stages["distill"]) == (2, 2)
    longer, shorter = (result.jobs[run.trained].job.inputs for run in result.runs)
    for name in ("collect", "bcq", "relabel"):
        assert not set(longer[name]) & set(shorter[name])
