"""The plan of a run: which jobs there are, and that keys change with what is computed and with nothing else."""

from dataclasses import replace

from pipeline.graph import Graph
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


def test_ablations_share_everything_up_to_distillation_and_neither_needs_no_tables():
    config = replace(preset("umaze_goal", "laptop"), methods=("full", "neither"), distill_seeds=(0, 1, 2))
    result = plan(config)
    Graph(result.nodes)  # unique names and artefacts, no circle
    distilled = [node.job for node in result.nodes if node.job.stage == "distill"]
    assert len(distilled) == 6
    assert len({job.key for job in distilled}) == 6
    for job in distilled:
        assert bool(job.inputs["relabel"]) == job.name.startswith("distill full")


def test_walker_trains_next_state_ensembles_and_the_others_do_not():
    for env, expected in (("walker_param", {"reward", "next_observation"}), ("ant_dir", {"reward"})):
        models = next(node.job for node in plan(preset(env, "laptop")).nodes if node.job.stage == "models")
        assert set(models.payload["configs"]) == expected


def test_a_key_ignores_the_order_of_a_payload():
    assert content_key("collect", {"a": 1, "b": 2}, {}) == content_key("collect", {"b": 2, "a": 1}, {})
    assert content_key("collect", {"a": 1}, {}) != content_key("collect", {"a": 2}, {})
    assert content_key("collect", {"a": 1}, {}) != content_key("collect", {"a": 1}, {"x": [("s", "k")]})
