"""The warm-start experiment through a real embedded Ray: arms, steps that are counted, reuse, options, bad input."""

import csv
import json
from dataclasses import replace

import pytest

from actors.store import Store
from mbml import envs
from pipeline.__main__ import main
from pipeline.config import ConfigError
from pipeline.methods import changed
from pipeline.presets import NAMES, preset
from pipeline.stages import plan
from pipeline.warmstart import check, plan_warmstart

ARMS = {"sac", "sac_two_batches", "warm_full", "warm_no_ensemble"}


def smoke():
    return replace(preset("umaze_goal", "smoke"), methods=("full", "no_ensemble"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished experiment; its store and its report."""
    result = tmp_path_factory.mktemp("warmstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield result, warmstart(result)


def warmstart(folder, *options, out="out"):
    arguments = ["--env", "umaze_goal", "--preset", "smoke", "--store", str(folder / "store"), "--num-cpus", "2"]
    return main(["warmstart", *arguments, "--out", str(folder / out), *options])


def rows(folder, out="out"):
    with (folder / out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_arm_has_a_curve_on_every_unseen_task(folder):
    place, code = folder
    assert code == 0
    found = {(row["arm"], row["task"]) for row in rows(place)}
    assert found == {(arm, str(task)) for arm in ARMS for task in range(2)}
    for number in ("08", "12", "13"):
        assert (place / "out" / f"figure-{number}.png").stat().st_size > 10_000
    text = (place / "out" / "report.md").read_text()
    assert "SAC from the multi-task policy on unseen tasks" in text
    assert "figure-12.png" in text


def test_every_environment_step_is_counted(folder):
    place, _ = folder
    warm = smoke().warmstart
    for row in rows(place):
        cold = row["arm"].startswith("sac")
        assert int(row["initial_steps"]) == (0 if cold else warm.initial_steps)
    for arm in ARMS:
        steps = sorted({int(row["environment_steps"]) for row in rows(place) if row["arm"] == arm})
        before = 0 if arm.startswith("sac") else warm.initial_steps
        assert steps[0] == before  # the policy before any learning
        assert steps[-1] == before + warm.online.steps


def test_arms_start_from_what_they_should(folder):
    place, _ = folder
    summary = json.loads((place / "out" / "summary.json").read_text())
    for arm in summary["warmstart"]:
        assert (arm["policy_return"] is None) == arm["arm"].startswith("sac")
    start = {
        arm["arm"]: [curve["return"][0] for curve in arm["curves"]] for arm in summary["warmstart"] if arm["seed"] == 0
    }
    assert start["warm_full"] != start["sac"]
    # The two cold arms draw the same random policy.
    assert start["sac"] == start["sac_two_batches"]


def test_a_second_run_makes_nothing_again_and_takes_the_options(folder, capsys):
    place, _ = folder
    store = Store(str(place / "store"))
    jobs = plan_warmstart(replace(smoke(), distill_cpus=1))
    created = {node.job.artefact: store.describe(*node.job.artefact)["created"] for node in jobs.nodes}
    assert warmstart(place, "--axis", "after_warmup", "--comparison", "paper", out="again") == 0
    assert created == {reference: store.describe(*reference)["created"] for reference in created}
    assert "Report: " in capsys.readouterr().out.splitlines()[-1]
    one, other = ((place / out / "figure-08.png").read_bytes() for out in ("out", "again"))
    assert one != other
    assert rows(place) == rows(place, "again")


def test_only_what_the_arms_need_is_planned():
    jobs = plan_warmstart(smoke())
    stages = {node.job.stage for node in jobs.nodes}
    assert stages == {"collect", "bcq", "models", "relabel", "distill", "warmstart"}
    names = [node.job.name for node in jobs.nodes]
    assert len(names) == len(set(names))


def test_a_gpu_goes_to_every_arm_and_into_its_key():
    on_cpu = {node.job.key for node in plan_warmstart(smoke()).nodes}
    arms = [node for node in plan_warmstart(replace(smoke(), learner_gpus=0.5)).nodes if node.job.stage == "warmstart"]
    assert arms
    assert not on_cpu & {node.job.key for node in arms}
    assert {(node.num_gpus, node.job.payload["device"]) for node in arms} == {(0.5, "cuda")}


def test_arms_from_scratch_do_not_depend_on_the_multi_task_policy():
    one, other = smoke(), changed(smoke(), {"distill.margin": 7.0, "warmstart.initial_steps": 90})
    for first, second in zip(plan_warmstart(one).arms, plan_warmstart(other).arms, strict=True):
        assert (first.jobs == second.jobs) == first.name.startswith("sac")


def test_the_pipelines_own_artefacts_are_shared():
    config = replace(smoke(), methods=("full",))
    needed = {node.job.artefact for node in plan_warmstart(config).nodes if node.job.stage != "warmstart"}
    assert needed <= set(plan(config).jobs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("env", envs.FAMILIES)
def test_every_preset_can_be_warm_started(env, name):
    config = preset(env, name)
    check(config)
    arms = plan_warmstart(config).arms
    assert [arm.name for arm in arms] == ["sac", "sac_two_batches", "warm_full"]


def test_the_paper_presets_numbers():
    for env in envs.FAMILIES:
        warm = preset(env, "paper").warmstart
        assert warm.snapshot == (40_000 if env == "humanoid_dir" else 0)
        assert warm.initial_steps == warm.online.warmup_steps == warm.imitation.steps == 10_000
        assert (warm.policy_rate, warm.imitation.batch_size, warm.imitation.learning_rate) == (0.1, 256, 3e-4)
        assert warm.online.sac.critic_hidden == (1024,) * 9
        assert warm.online.steps == 360_000  # 350 epochs behind the warm-up, as far as the figures go


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmstart.online.sac.critic_hidden": (8, 8)}, "must be distill.student.value_hidden"),
        ({"distill.student.value_hidden": (8, 8)}, "must be distill.student.value_hidden"),
        ({"warmstart.online.warmup_steps": 180}, "must be below warmstart.online.steps"),
        ({"warmstart.snapshot": 7}, "snapshots are taken every 10 steps up to 20"),
        ({"warmstart.snapshot": 30}, "snapshots are taken every 10 steps up to 20"),
        ({"warmstart.policy_rate": 0.0}, "above 0 and at most 1"),
        ({"warmstart.imitation.target": "tanh"}, "one of action, atanh"),
        ({"methods": ("contextual_bcq",)}, "no distilled value function"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        plan_warmstart(changed(smoke(), changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [("--axis", "epochs"), ("--comparison", "other"), ("--warmstart.snapshot", "7"), ("--methods", "batch_pearl")],
)
def test_the_command_refuses_before_it_starts_anything(options, tmp_path, capsys):
    try:
        code = warmstart(tmp_path, *options)
    except SystemExit as stop:  # tyro's own refusals
        code = stop.code
    assert code == 2
    assert not (tmp_path / "store").exists()
    assert "Traceback" not in capsys.readouterr().err
