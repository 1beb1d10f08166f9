"""The warm-start experiment through a real embedded Ray: arms, steps that are counted, reuse, options, bad input."""

from dataclasses import replace

import pytest

from actors.store import Store
from mbml import envs
from pipeline.command import main
from pipeline.plan import plan_warmstart
from pipeline.presets import preset
from pipeline.results import Results

ARMS = {"sac", "sac_two_batches", "warm_full", "warm_no_ensemble"}


def smoke():
    return replace(preset("umaze_goal", "smoke"), methods=("full", "no_ensemble"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, embedded_ray):
    """A finished experiment; its store and its report."""
    result = tmp_path_factory.mktemp("warmstart")
    return result, warmstart(result)


def warmstart(folder, *options, out="out"):
    arguments = ["--env", "umaze_goal", "--preset", "smoke", "--store", str(folder / "store"), "--num-cpus", "2"]
    return main(["warmstart", *arguments, "--out", str(folder / out), *options])


def rows(folder, out="out"):
    results = Results.load(folder / out)
    return results.rows("return", split="test")


def test_every_arm_has_a_curve_on_every_unseen_task(folder):
    place, code = folder
    assert code == 0
    found = set(rows(place)[["method", "task"]].itertuples(index=False, name=None))
    assert found == {(arm, task) for arm in ARMS for task in range(2)}
    for number in ("08", "12", "13"):
        assert (place / "out" / f"figure-{number}.png").stat().st_size > 10_000
    text = (place / "out" / "report.md").read_text()
    assert "SAC from the multi-task policy on unseen tasks" in text
    assert "figure-12.png" in text


def test_every_environment_step_is_counted(folder):
    place, _ = folder
    warm = smoke().warmstart
    for arm, curves in rows(place).groupby("method"):
        steps = sorted(set(curves["step"]))
        before = 0 if str(arm).startswith("sac") else warm.initial_steps
        assert steps[0] == before  # the policy before any learning
        assert steps[-1] == before + warm.online.steps


def test_arms_start_from_what_they_should(folder):
    place, _ = folder
    results = Results.load(place / "out")
    assert set(results.methods("policy_return")) == {arm for arm in ARMS if not arm.startswith("sac")}
    first = rows(place).sort_values("step").groupby(["method", "seed", "task"]).first()["value"]
    start = {arm: first.loc[arm, 0].tolist() for arm in ARMS}
    assert start["warm_full"] != start["sac"]
    # The two cold arms draw the same random policy.
    assert start["sac"] == start["sac_two_batches"]


def test_a_second_run_makes_nothing_again_and_takes_the_options(folder, capsys):
    place, _ = folder
    store = Store(str(place / "store"))
    jobs = plan_warmstart(replace(smoke(), distill_cpus=1))
    created = {ref: store.describe(*ref)["created"] for ref in jobs.jobs}
    assert warmstart(place, "--axis", "after_warmup", "--comparison", "paper", out="again") == 0
    assert created == {reference: store.describe(*reference)["created"] for reference in created}
    assert "Report: " in capsys.readouterr().out.splitlines()[-1]
    one, other = ((place / out / "figure-08.png").read_bytes() for out in ("out", "again"))
    assert one != other
    assert rows(place).equals(rows(place, "again"))


def test_a_better_start_changes_the_warm_arms_alone(folder):
    place, _ = folder
    how = ("--warmstart.imitation.foreign-states", "7", "--warmstart.replayed", "--warmstart.held-updates", "30")
    assert warmstart(place, "--methods", "full", *how, out="better") == 0
    before, after = (rows(place, out).set_index(["method", "task", "step"])["value"] for out in ("out", "better"))
    for arm in ("sac", "sac_two_batches", "warm_full"):
        assert after.loc[arm].equals(before.loc[arm]) == arm.startswith("sac")


def test_the_paper_presets_numbers():
    for env in envs.FAMILIES:
        warm = preset(env, "paper").warmstart
        assert warm.snapshot == (40_000 if env == "humanoid_dir" else 0)
        assert warm.initial_steps == warm.online.warmup_steps == warm.imitation.steps == 10_000
        assert (warm.policy_rate, warm.imitation.batch_size, warm.imitation.learning_rate) == (0.1, 256, 3e-4)
        assert warm.online.sac.critic_hidden == (1024,) * 9
        assert warm.online.steps == 360_000  # 350 epochs behind the warm-up, as far as the figures go


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
