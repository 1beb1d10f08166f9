"""What cannot fit into memory is refused before it starts, with what it would take."""

import pytest

from mbml.logs.importing import import_logs
from mbml.settings import changed
from pipeline.command import main
from pipeline.config import ConfigError
from pipeline.fit import plan_fit
from pipeline.memory import check_memory
from pipeline.plan import plan
from pipeline.presets import preset
from tests.mbml.logs.fleet import machine, write_npz


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        # 10**11 steps of 5 tasks in rows of 12 numbers of 4 bytes
        ({"collect.steps": 10**11}, r"collect tasks 0-4 .* needs at least 2\d,\d{3}\.\d GB for 100,000,000,000 steps"),
        # 10**10 weights, each with gradient and two moments, for 5 tasks
        ({"collect.sac.critic_hidden": (100_000, 100_000)}, r"collect .* 800\.0 GB for .* 100000 x 100000, 5 times"),
        ({"models.reward.hidden": (50_000, 50_000)}, r"models tasks .* 1,000\.0 GB for .* 50000 x 50000, 25 times"),
        (
            {"distill.student.value_hidden": (100_000, 100_000)},
            r"distill full .* 160\.0 GB for .* 100000 x 100000, and",
        ),
        ({"bcq.batch_size": 10**9}, r"teach .* for batches of 1000000000 in layers of \d+, 5 times"),
        # 10**13 numbers of the task's embedding, each with a weight to 32 units of 16 bytes
        (
            {"evidence.student.encoder.embedding_size": 10**13},
            r"distill evidence .* for a network of 10000000000000 x \d+ x",
        ),
        # the 11 numbers of a transition that a context holds, of 4 bytes
        ({"evidence.context_size": 10**11}, r"distill evidence .* 4,400\.0 GB for context_size 100,000,000,000,"),
        ({"evidence.batch_size": 10**11}, r"distill evidence .* 4,400\.0 GB for batch_size 100,000,000,000,"),
        ({"distill.student.acting_candidates": 10**11}, r"distill full .* for acting_candidates 100,000,000,000,"),
        (  # one network, whatever the number of tasks
            {"pooled.teacher": "bcq", "pooled.hidden": (100_000, 100_000)},
            r"teach all tasks together .* 160\.0 GB for .* 100000 x 100000, and",
        ),
        ({"collect.evaluation_episodes": 10**11}, r"collect .* for evaluation_episodes 100,000,000,000,"),
        ({"pooled.teacher": "bcq", "pooled.evaluation_episodes": 2**62}, r"teach all .* for evaluation_episodes 4,611"),
        ({"bcq.target_candidates": 10**10}, r"teach .* for target_candidates 10,000,000,000,"),
    ],
)
def test_what_cannot_fit_is_refused_with_an_estimate(embedded_ray, change, sentence):
    config = changed(preset("umaze_goal", "laptop"), change)
    with pytest.raises(ConfigError, match=sentence):
        check_memory(plan(config).jobs.values())


def test_contexts_that_cannot_fit_are_refused_of_logs_as_well(embedded_ray, tmp_path):
    logs = write_npz(tmp_path, {name: machine((5, 3, 6), seed) for seed, name in enumerate("abcd")})
    folder = import_logs(logs, tmp_path / "set", held_out=["d"], log=lambda line: None)
    config = preset(f"data:{folder}", "smoke")
    check_memory(plan_fit(config).jobs.values())
    with pytest.raises(ConfigError, match=r"assess .* for 100,000,000,000 contexts of 1 transitions or more"):
        check_memory(plan_fit(changed(config, {"assess.contexts": 10**11})).jobs.values())


@pytest.mark.parametrize("env", ["umaze_goal", "humanoid_dir"])
@pytest.mark.parametrize("size", ["smoke", "laptop", "paper"])
def test_presets_fit_on_this_machine(embedded_ray, env, size):
    check_memory(plan(preset(env, size)).jobs.values())


def test_a_refused_run_leaves_nothing_in_its_folder(embedded_ray, tmp_path, capsys):
    run = ["run", "--env", "umaze_goal", "--preset", "smoke", "--bcq.batch-size", "1000000000000"]
    assert main([*run, "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]) == 2
    assert "batches of 1000000000000" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
