"""Every environment's smoke pipeline through one real embedded Ray, to the report; and what a second run reuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actors.artefacts import load_policy, snapshot_of
from actors.store import Store
from mbml import envs
from mbml.data import validate
from mbml.methods import METHODS
from mbml.settings import changed
from pipeline.plan import plan
from pipeline.presets import preset
from pipeline.report.page import write_report
from pipeline.scheduler import execute
from pipeline.summarise import summarise

COMPARED = tuple(name for name in METHODS if name != "metagenrl")


@pytest.fixture(scope="module")
def everything(tmp_path_factory, embedded_ray):
    """All six smoke pipelines as one graph, so that actors are shared; plans, store and outcome."""
    store = tmp_path_factory.mktemp("store")
    plans = {env: plan(preset(env, "smoke")) for env in envs.FAMILIES}
    # One environment also trains every ablation and rival, from the same data and teachers; others the rest.
    plans["umaze_goal"] = plan(replace(preset("umaze_goal", "smoke"), methods=COMPARED, distill_seeds=(0, 1)))
    plans["ant_dir"] = plan(replace(preset("ant_dir", "smoke"), methods=("full", "metagenrl")))
    plans["half_cheetah_vel"] = plan(changed(preset("half_cheetah_vel", "smoke"), {"rllib.algorithms": ("bc",)}))
    jobs = [job for one in plans.values() for job in one.jobs.values()]
    outcome = execute(jobs, str(store), poll_seconds=60)
    again = execute(jobs, str(store), log=lambda line: None)
    return plans, Store(store), outcome, again


def test_every_job_of_every_environment_ends_well(everything):
    plans, _, outcome, _ = everything
    assert not outcome.failed
    assert not outcome.skipped
    assert len(outcome.done) == sum(len(one.jobs) for one in plans.values())


def test_a_second_run_reuses_everything(everything):
    _, _, outcome, again = everything
    assert not again.done
    assert sorted(again.reused) == sorted(outcome.done)


@pytest.mark.parametrize("env", envs.FAMILIES)
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


@pytest.mark.parametrize("env", envs.FAMILIES)
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
    compared = plans["umaze_goal"]
    assert [(run.variant.label, run.seed) for run in compared.runs] == [(m, s) for m in COMPARED for s in (0, 1)]
    encoders = set()
    for run in compared.runs:
        policy = load_policy(snapshot_of(store.fetch(*run.trained), compared.config.distill.steps))
        encoders.add(policy.encoder.body.weights[0].detach().numpy().tobytes())
    assert len(encoders) == len(compared.runs)


def test_every_method_is_probed(everything):
    plans, store, outcome, _ = everything
    summary = summarise(plans["umaze_goal"], store, outcome)
    assert [row["method"] for row in summary["probes"]] == [m for m in COMPARED for _ in (0, 1)]
    for row in summary["probes"]:
        assert len(row["identification"]) == 3
        assert all(0 <= share <= 1 for share in row["identification"])
        assert {name: len(values) for name, values in row["foreign_contexts"].items()} == {"nearest": 2, "farthest": 2}
        assert (row["last_trajectory"] is not None) == (row["method"] == "batch_pearl")
    # The maze never terminates, so PEARL's own protocol is the return of the last episode, under other draws of z: the
    # probe plays the unseen tasks alone.
    pearl = next(row for row in summary["probes"] if row["method"] == "batch_pearl")
    scored = next(row for row in summary["evaluation"] if row["method"] == "batch_pearl")
    assert pearl["last_trajectory"] == pytest.approx([returns[-1] for returns in scored["test_episodes"]], rel=1e-3)


def test_the_error_of_the_reward_models_is_followed_with_and_without_an_ensemble(everything):
    plans, store, outcome, _ = everything
    found = {row["method"]: row for row in summarise(plans["umaze_goal"], store, outcome)["relabelling"]}
    assert set(found) == {"full", "no_triplet", "ground_truth", "no_ensemble"}
    for method in ("full", "no_ensemble"):
        assert [row["step"] for row in found[method]["training"]] == list(range(4, 41, 4))
        errors = [tuple(row["error"]) for row in found[method]["training"]]
        assert all(len(error) == 3 for error in errors)
        assert len(set(errors)) == len(errors)  # the models as they were then, not as they are now
    assert all(row["kept"] == 1.0 for row in found["no_ensemble"]["training"])
    assert found["no_ensemble"]["training"] != found["full"]["training"]
    assert found["ground_truth"]["training"] is None
    assert [share for row in found["no_ensemble"]["share"] for share in row if share is not None] == [1.0] * 6


def test_single_task_rivals(everything):
    plans, store, outcome, _ = everything
    (curve,) = summarise(plans["ant_dir"], store, outcome)["metagenrl"]
    assert curve["task"] == 0
    assert curve["step"] == [4, 8]
    cheetah = summarise(plans["half_cheetah_vel"], store, outcome)["references"]["train"]
    assert len(cheetah["rllib_bc"]) == len(cheetah["bcq"]) == 3


def test_one_processor_gives_the_same_bits_as_two(everything, tmp_path):
    store = everything[1]
    one = plan(preset("umaze_goal", "smoke"))
    shared = [job for job in one.jobs.values() if job.stage.name not in ("evaluate", "references", "probe")]
    # Jobs in the reverse order on the Ray that is there: other actors, other neighbours, the same bytes.
    outcome = execute(shared[::-1], str(tmp_path), log=lambda line: None)
    assert not outcome.failed
    for job in shared:
        again, before = Store(tmp_path).fetch(*job.ref), store.fetch(*job.ref)
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
    learned = [job for job in one.jobs.values() if job.stage.name in ("collect", "teach")]
    outcome = execute(learned, str(tmp_path), log=lambda line: None)
    damaged, sound = (job.name for job in learned if job.stage.name == "teach")
    assert outcome.refused == [damaged] == list(outcome.failed)
    assert shard.name in outcome.failed[damaged]
    assert sound in outcome.done
