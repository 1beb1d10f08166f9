"""Every environment's smoke pipeline through one real embedded Ray, to the report; and what a second run reuses."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.artefacts import layout_of, load_rows, load_teachers, read_json, read_lines, snapshot_of, tasks_of
from actors.store import Store
from mbml import envs
from mbml.data import validate
from mbml.encoders import NetworkEncoder
from mbml.evaluate import evaluate_teachers
from mbml.methods import METHODS
from mbml.policy import ContextPolicy
from mbml.rows import rows_of, sample_indices
from mbml.seeding import generator_of
from mbml.settings import changed
from mbml.teachers import TEACHERS
from pipeline.plan import plan
from pipeline.presets import preset
from pipeline.publish import say_failures
from pipeline.report.page import run_page
from pipeline.results import best_policy, cube, gather
from pipeline.run import hand_over
from pipeline.scheduler import execute, standing
from tests.mbml.toys import assert_same_bits

UMAZE = changed(preset("umaze_goal", "smoke"), {"evaluate.reference_episodes": 3})
COMPARED = tuple(name for name in METHODS if name != "metagenrl")


@pytest.fixture(scope="module")
def everything(tmp_path_factory, embedded_ray):
    """All six smoke pipelines as one graph, so that actors are shared; plans, store and outcome."""
    store = tmp_path_factory.mktemp("store")
    plans = {env: plan(preset(env, "smoke")) for env in envs.FAMILIES}
    # One environment also trains every ablation and rival, from the same data and teachers; others the rest.
    plans["umaze_goal"] = plan(replace(UMAZE, methods=COMPARED, distill_seeds=(0, 1)))
    plans["ant_dir"] = plan(replace(preset("ant_dir", "smoke"), methods=("full", "metagenrl")))
    several = {"evidence.besides": ("td3_bc",), "pooled.teacher": "td3_bc"}
    plans["walker_param"] = plan(changed(preset("walker_param", "smoke"), several))
    plans["half_cheetah_vel"] = plan(changed(preset("half_cheetah_vel", "smoke"), {"rllib.algorithms": ("bc",)}))
    jobs = [job for one in plans.values() for job in one.jobs.values()]
    outcome = execute(jobs, str(store), poll_seconds=60)
    again = execute(jobs, str(store), log=lambda line: None)
    return plans, Store(store), outcome, again


@pytest.fixture(scope="module")
def gathered(everything):
    """The results of every environment's run, by its name."""
    plans, store, outcome, _ = everything
    return {env: gather(one, store, outcome) for env, one in plans.items()}


def test_every_job_of_every_environment_ends_well(everything):
    plans, _, outcome, _ = everything
    assert not outcome.failed
    assert not outcome.skipped
    assert len(outcome.done) == sum(len(one.jobs) for one in plans.values())


def test_a_second_run_reuses_everything(everything):
    _, _, outcome, again = everything
    assert not again.done
    assert sorted(again.reused) == sorted(outcome.done)
    for now, before in zip(again.cost, outcome.cost, strict=True):
        assert (now.stage, now.jobs, now.reused) == (before.stage, before.jobs, before.jobs)
        assert now.work_seconds == pytest.approx(before.work_seconds)
        assert now.peak_memory_mb == before.peak_memory_mb


def test_a_report_that_is_written_again_tells_what_the_run_took(everything):
    plans, store, _, _ = everything
    jobs = plans["ant_goal"]
    results = gather(jobs, store, standing(jobs.jobs.values(), store))
    assert results.run["wall_seconds"] is None
    for stage in results.run["cost"]:
        made = [store.describe(*ref)["metrics"]["seconds"] for ref in jobs.jobs if ref.stage == stage["stage"]]
        assert (stage["jobs"], stage["reused"]) == (len(made), len(made))
        assert stage["work_seconds"] == pytest.approx(sum(made))


@pytest.mark.parametrize("env", envs.FAMILIES)
def test_the_report_of_every_environment(everything, gathered, env, tmp_path):
    plans, store, _, _ = everything
    results = hand_over(plans[env], store, gathered[env], tmp_path)
    page = run_page(results, tmp_path)
    page.write(tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 50_000
    assert f"seed {results.run['policy']['seed']}, the best one on training tasks" in " ".join(
        page.render("txt").split()
    )
    config = plans[env].config
    assert results.run["environment"] == env
    for method in results.methods("score"):
        for split, tasks in (("test", config.test_tasks), ("train", config.train_tasks)):
            steps, scores = results.scores(method, split)
            assert steps.tolist() == ([1] if method == "bank" else [10, 20])
            assert scores.shape == (1 if method == "bank" else len(config.distill_seeds), len(steps), tasks)
    tried_out = ("best_teacher",) if config.evaluate.reference_episodes > 1 else ()
    for name in ("random", "zero_action", "blind_teacher", "blind_teacher_bound", "nearest_teacher", *tried_out):
        assert len(results.references("test")[name]) == config.test_tasks
    assert ("best_teacher" in results.references("test")) == bool(tried_out)
    for name in ("sac", "own_teacher"):
        assert len(results.references("train")[name]) == config.train_tasks
    assert results.rows("swap_follows_reward").empty == (envs.get(env).reward is None)


def test_references_are_fresh_returns_of_teachers_chosen_on_the_training_tasks(everything, gathered):
    plans, store, _, _ = everything
    jobs, results = plans["umaze_goal"], gathered["umaze_goal"]
    found = read_json(store.fetch(*jobs.artefacts["references"][0]) / "references.json")
    teachers = {split: np.array(found[split]["teachers"]) for split in ("train", "test")}  # [teacher, task]
    own, test = results.references("train")["own_teacher"], results.references("test")
    np.testing.assert_array_equal(own, np.diagonal(teachers["train"]))
    np.testing.assert_array_equal(test["blind_teacher"], teachers["test"][teachers["train"].mean(axis=1).argmax()])
    np.testing.assert_array_equal(test["blind_teacher_bound"], teachers["test"][teachers["test"].mean(axis=1).argmax()])
    np.testing.assert_array_equal(test["best_teacher"], found["test"]["best_teacher"])
    _, table = cube(results.rows("teacher_return", split="test"), "index", "task")
    np.testing.assert_array_equal(table, teachers["test"])


def test_the_pooled_teacher_learns_from_all_batches_as_from_one(everything, gathered):
    plans, store, _, _ = everything
    jobs, results = plans["walker_param"], gathered["walker_param"]
    (spec,) = (job.spec for job in jobs.jobs.values() if getattr(job.spec, "pooled", None) == jobs.train)
    (pooled,) = (ref for ref, job in jobs.jobs.items() if job.spec is spec)
    rows = load_rows([store.fetch(*ref) for ref in spec.collect], jobs.train)
    everybody = torch.cat([rows_of(rows, task) for task in jobs.train])
    generator = generator_of(spec.seed, "td3_bc", jobs.train[0])
    learner = TEACHERS["td3_bc"].make(spec.learner, layout_of("walker_param"), 1, generator)
    (chosen,) = read_json(store.fetch(*pooled) / "selected.json")
    for _ in range(chosen["iteration"]):
        learner.update(everybody[sample_indices(1, spec.learner.batch_size, len(everybody), generator)])
    (kept,) = [load_teachers([store.fetch(*pooled)], None)]
    assert_same_bits(kept.parameters(), learner.teachers().parameters())
    curve = read_lines(store.fetch(*pooled) / "curves.jsonl")
    assert chosen["return"] == max(point["return"] for point in curve)

    (played,) = jobs.pooled
    for split in ("train", "test"):
        protocol = jobs.jobs[played].spec
        returns = evaluate_teachers(kept, protocol.of(tasks_of("walker_param", split, getattr(protocol, split))))
        np.testing.assert_array_equal(results.references(split)["pooled_teacher"], returns[0].mean(-1))
    trained = {run.variant.label: jobs.jobs[run.trained].spec for run in jobs.runs}
    assert trained["evidence"].pooled == (played, pooled)
    assert trained["full"].pooled is None


@pytest.mark.parametrize("env", envs.FAMILIES)
def test_the_collected_datasets_are_valid(everything, env):
    plans, store, _, _ = everything
    for reference in plans[env].artefacts["collect"]:
        validate(store.fetch(*reference) / "dataset")


def test_the_policy_that_is_best_on_the_training_tasks_is_handed_over(everything, gathered, tmp_path):
    plans, store, _, _ = everything
    jobs = plans["umaze_goal"]
    results = hand_over(jobs, store, gathered["umaze_goal"], tmp_path)
    means = {}
    for run in jobs.runs:
        last = 1 if run.variant.method == "bank" else 20
        scores = read_json(store.fetch(*run.evaluations[last]) / "scores.json")["train"]["score"]
        means[run.variant.label, run.seed] = np.mean(scores)
    chosen = results.run["policy"]
    assert (chosen["method"], chosen["seed"]) == max(means, key=lambda run: means[run])
    assert chosen["score"] == pytest.approx(max(means.values()))
    trained = next(r for r in jobs.runs if (r.variant.label, r.seed) == (chosen["method"], chosen["seed"]))
    snapshot = snapshot_of(store.fetch(*trained.trained), 1 if chosen["method"] == "bank" else 20)
    assert (tmp_path / "policy" / "policy.safetensors").read_bytes() == snapshot.read_bytes()


def test_nothing_in_the_store_is_a_pickle(everything):
    _, store, _, _ = everything
    suffixes = {path.suffix for path in Path(store.url).rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".arrow"}


def test_methods_share_data_and_teachers_but_not_students(everything):
    plans, store, _, _ = everything
    compared = plans["umaze_goal"]
    pairs = [(m, s) for m in COMPARED for s in (0, 1) if (m, s) != ("bank", 1)]  # a bank is the same for all seeds
    assert [(run.variant.label, run.seed) for run in compared.runs] == pairs
    encoders = set()
    students = [run for run in compared.runs if run.variant.method != "bank"]
    for run in students:
        policy = ContextPolicy.load(snapshot_of(store.fetch(*run.trained), compared.config.distill.steps))
        assert isinstance(policy.encoder, NetworkEncoder)
        encoders.add(policy.encoder.body.weights[0].detach().numpy().tobytes())
    assert len(encoders) == len(students)


def test_every_method_is_probed(gathered):
    results = gathered["umaze_goal"]
    assert results.methods("identified") == results.methods("foreign_nearest") == list(COMPARED)
    (_, _), shares = cube(results.rows("identified", method="full"), "seed", "index")
    assert shares.shape == (2, 3)
    assert ((shares >= 0) & (shares <= 1)).all()
    assert results.methods("last_trajectory") == ["batch_pearl"]
    # The maze never terminates, so PEARL's own protocol is the return of the last episode, under other draws of z: the
    # probe plays the unseen tasks alone.
    where = {"method": "batch_pearl", "seed": 0, "split": "test"}
    last = results.rows("episode_return", index=3, **where)["value"].tolist()
    assert results.rows("last_trajectory", **where)["value"].tolist() == pytest.approx(last, rel=1e-3)


def test_behaviour_is_that_of_the_policy_that_is_handed_out(everything, gathered):
    plans, store, _, _ = everything
    results, chosen = gathered["umaze_goal"], best_policy(gathered["umaze_goal"])
    assert chosen is not None
    rows = results.table[results.table["metric"].str.startswith("behaviour_")]
    assert (set(rows["method"]), set(rows["seed"])) == ({chosen["method"]}, {chosen["seed"]})
    (tasks, episodes, steps), x = cube(results.rows("behaviour_0"), "task", "index", "step")
    horizon = plans["umaze_goal"].config.resolved().horizon
    assert (tasks.tolist(), episodes.tolist(), steps.tolist()) == ([0, 1], [1, 2, 5], [*range(1, horizon + 1)])
    np.testing.assert_allclose(x[..., 0], 2.0, atol=0.2)  # where episodes begin
    run = next(r for r in plans["umaze_goal"].runs if (r.variant.label, r.seed) == (chosen["method"], chosen["seed"]))
    assert run.trace
    lines = read_lines(store.fetch(*run.trace) / "behaviour.jsonl")
    assert [line["shown"][0] for line in lines] == x.reshape(6, -1).tolist()


def test_the_error_of_the_reward_models_is_followed_with_and_without_an_ensemble(gathered):
    results = gathered["umaze_goal"]
    assert set(results.methods("relabel_share")) == {"full", "no_triplet", "ground_truth", "no_ensemble", "evidence"}
    errors = {}
    for method in ("full", "no_ensemble"):
        rows = results.rows("relabel_training_error", method=method)
        (steps, tasks), errors[method] = cube(rows, "step", "task")
        assert steps.tolist() == list(range(4, 41, 4))
        assert len(tasks) == 3
        assert len(np.unique(errors[method], axis=0)) == 10  # the models as they were then, not as they are now
    assert (errors["full"] != errors["no_ensemble"]).any()
    assert (results.rows("relabel_training_kept", method="no_ensemble")["value"] == 1.0).all()
    assert results.rows("relabel_training_error", method="ground_truth").empty
    assert results.rows("relabel_share", method="no_ensemble")["value"].tolist() == [1.0] * 6


def test_single_task_rivals(gathered):
    curve = gathered["ant_dir"].rows("return", method="metagenrl")
    assert curve["task"].tolist() == [0, 0]
    assert curve["step"].tolist() == [4, 8]
    cheetah = gathered["half_cheetah_vel"].references("train")
    assert len(cheetah["rllib_bc"]) == len(cheetah["own_teacher"]) == 3


def test_one_processor_gives_the_same_bits_as_two(everything, tmp_path):
    store = everything[1]
    one = plan(UMAZE)
    shared = [job for job in one.jobs.values() if job.stage.name not in ("evaluate", "likelihood", "probe")]
    # Jobs in the reverse order on the Ray that is there: other actors, other neighbours, the same bytes.
    outcome = execute(shared[::-1], str(tmp_path), log=lambda line: None)
    assert not outcome.failed
    for job in shared:
        again, before = Store(tmp_path).fetch(*job.ref), store.fetch(*job.ref)
        files = sorted(
            path.relative_to(before)
            for path in before.rglob("*")
            if path.suffix in (".arrow", ".safetensors") or path.name in ("references.json", "behaviour.jsonl")
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
    said: list[str] = []
    assert say_failures(outcome, str(tmp_path), said.append) == 2
    assert said[-1].endswith("the same command with --repair makes what is damaged anew.")
