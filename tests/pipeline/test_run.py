"""Every environment's smoke pipeline through one real embedded Ray, to the report; and what a second run reuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actors.store import Store
from mbml import envs
from mbml.data import validate
from mbml.policy import Student
from pipeline.presets import preset
from pipeline.report.page import write_report
from pipeline.scheduler import connect, execute
from pipeline.stages import plan
from pipeline.summarise import summarise


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All six smoke pipelines as one graph, so that actors are shared; plans, store and outcome."""
    store = tmp_path_factory.mktemp("store")
    plans = {env: plan(preset(env, "smoke")) for env in envs.NAMES}
    # One environment also trains every ablation, on the same data and teachers.
    plans["umaze_goal"] = plan(
        replace(
            preset("umaze_goal", "smoke"),
            methods=("full", "no_triplet", "no_relabelling", "neither"),
            distill_seeds=(0, 1),
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connect(num_cpus=2):
            nodes = [node for one in plans.values() for node in one.nodes]
            outcome = execute(nodes, str(store), poll_seconds=60)
            again = execute(nodes, str(store), log=lambda line: None)
            yield plans, Store(store), outcome, again


def test_every_job_of_every_environment_ends_well(everything):
    plans, _, outcome, _ = everything
    assert not outcome.failed
    assert not outcome.skipped
    assert len(outcome.done) == sum(len(one.nodes) for one in plans.values())


def test_a_second_run_reuses_everything(everything):
    _, _, outcome, again = everything
    assert not again.done
    assert sorted(again.reused) == sorted(outcome.done)


@pytest.mark.parametrize("env", envs.NAMES)
def test_the_report_of_every_environment(everything, env, tmp_path):
    plans, store, outcome, _ = everything
    summary = summarise(plans[env], store, outcome)
    page = write_report(summary, tmp_path)
    assert page.stat().st_size > 50_000
    written = json.loads((tmp_path / "summary.json").read_text())
    config = plans[env].config
    assert written["environment"] == env
    steps = list(range(config.distill.snapshot_every, config.distill.steps + 1, config.distill.snapshot_every))
    for run in written["evaluation"]:
        assert run["step"] == steps
        assert [len(scores) for scores in run["test"]] == [config.test_tasks] * len(steps)
        assert [len(scores) for scores in run["train"]] == [config.train_tasks] * len(steps)
    for name in ("random", "zero_action", "best_blind_teacher", "nearest_teacher"):
        assert len(written["references"]["test"][name]) == config.test_tasks
    assert len(written["references"]["train"]["sac"]) == config.train_tasks
    assert (written["reward_swap"] is None) == (envs.get(env).reward is None)


@pytest.mark.parametrize("env", envs.NAMES)
def test_the_collected_datasets_are_valid(everything, env):
    plans, store, _, _ = everything
    for reference in plans[env].artefacts["collect"]:
        validate(store.fetch(*reference) / "dataset")


def test_nothing_in_the_store_is_a_pickle(everything):
    _, store, _, _ = everything
    suffixes = {path.suffix for path in Path(store.url).rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".arrow"}


def test_methods_share_data_and_teachers_but_not_students(everything):
    plans, store, _, _ = everything
    runs = plans["umaze_goal"].runs
    assert len(runs) == 8
    weights = {}
    for run in runs:
        step = plans["umaze_goal"].config.distill.steps
        student = Student.load(store.fetch(*run.distill) / "snapshots" / f"step-{step:07d}.safetensors")
        weights[run.method, run.seed] = student.encoder.body.weights[0].detach().numpy().tobytes()
    assert len(set(weights.values())) == 8


def test_one_processor_gives_the_same_bits_as_two(everything, tmp_path):
    store = everything[1]
    one = plan(preset("umaze_goal", "smoke"))
    shared = [node for node in one.nodes if node.job.stage != "evaluate"]
    # Jobs in the reverse order on the Ray that is there: other actors, other neighbours, the same bytes.
    outcome = execute(shared[::-1], str(tmp_path), log=lambda line: None)
    assert not outcome.failed
    for node in shared:
        again, before = Store(tmp_path).fetch(*node.job.artefact), store.fetch(*node.job.artefact)
        files = sorted(
            path.relative_to(before) for path in before.rglob("*") if path.suffix in (".arrow", ".safetensors")
        )
        assert files
        for file in files:
            assert (again / file).read_bytes() == (before / file).read_bytes(), file


def test_a_damaged_dataset_is_refused_by_name_and_the_other_tasks_go_on(everything, tmp_path):
    store = everything[1]
    one = plan(preset("umaze_goal", "smoke"))
    for reference in one.artefacts["collect"]:
        shutil.copytree(store.fetch(*reference), tmp_path.joinpath(*reference))
    shard = next(tmp_path.joinpath(*one.artefacts["collect"][0]).rglob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:100])
    learned = [node for node in one.nodes if node.job.stage in ("collect", "bcq")]
    outcome = execute(learned, str(tmp_path), log=lambda line: None)
    damaged, sound = (node.job.name for node in learned if node.job.stage == "bcq")
    assert outcome.refused == [damaged] == list(outcome.failed)
    assert shard.name in outcome.failed[damaged]
    assert sound in outcome.done
