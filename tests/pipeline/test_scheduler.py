"""The scheduler on a real embedded Ray of two CPUs."""

import itertools
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import ray
from ray.exceptions import RayActorError

from actors.host import remote
from actors.stage import Job, Ref
from actors.store import Store, StoreError
from pipeline.cluster import ClusterError
from pipeline.publish import say_failures
from pipeline.scheduler import discard_damaged, execute
from tests.pipeline.workers import Add, Count, job
from tests.signals import named


def total(store, of):
    return int((Store(store).fetch(*of.ref) / "total").read_text())


def until_free(cpus):
    latest = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) != cpus:
        assert time.monotonic() < latest
        time.sleep(0.02)


def diamond(**changes):
    a = job("a")
    b, c = job("b", a, **changes), job("c", a)
    return [a, b, c, job("d", b, c)]


@pytest.mark.usefixtures("embedded_ray")
class TestExecute:
    def test_gpus_that_no_machine_has_are_refused(self, tmp_path):
        with pytest.raises(ClusterError, match=r"a asks for 0\.5 GPUs, but this machine has 2 CPUs, 0 GPUs; "):
            execute([job("a", num_gpus=0.5)], str(tmp_path))

    def test_a_diamond_runs_in_order_and_afterwards_only_what_is_needed(self, tmp_path):
        store, lines = str(tmp_path), []
        outcome = execute(diamond(), store, log=lines.append)
        assert outcome.complete
        assert sorted(outcome.done) == ["a", "b", "c", "d"]
        assert outcome.done[0] == "a"
        assert outcome.done[-1] == "d"
        assert total(store, diamond()[-1]) == 5  # 1 + (1 + 1) + (1 + 1)
        assert sum(line.startswith("finished") for line in lines) == 4
        (cost,) = outcome.cost
        assert (cost.stage, cost.jobs, cost.reused) == ("add", 4, 0)
        assert cost.wall_seconds > 0
        assert cost.peak_memory_mb > 10
        assert Store(store).describe(*job("a").ref)["metrics"]["threads"] == 1

        again = execute(diamond(), store, log=lines.append)
        assert again.reused == ["a", "b", "c", "d"]
        assert not again.done
        assert again.cost[0].reused == 4
        assert again.cost[0].wall_seconds == 0
        assert again.cost[0].work_seconds == cost.work_seconds

        a, *_, d = diamond()
        for each in (a, d):
            (tmp_path.joinpath(*each.ref) / "manifest.json").unlink()
        partly = execute(diamond()[::-1], store, log=lines.append)
        assert (sorted(partly.reused), sorted(partly.done)) == (["b", "c"], ["a", "d"])  # reports may read both

    def test_what_another_run_makes_meanwhile_is_reused_and_not_called_done(self, tmp_path):
        lines, shared = [], job("shared", sleep=3.0)
        other = remote(str(tmp_path), 1, 0)
        made = other.run.remote(shared)
        while not tmp_path.joinpath(shared.ref.stage, f"{shared.ref.key}.partial").exists():
            time.sleep(0.01)
        outcome = execute([shared, job("own", shared)], str(tmp_path), log=lines.append)
        assert (outcome.reused, outcome.done) == (["shared"], ["own"])
        assert "reused" not in ray.get(made)
        assert sum(line.startswith("reused   shared") for line in lines) == 1
        assert [(cost.jobs, cost.reused) for cost in outcome.cost] == [(2, 1)]
        ray.kill(other)

    def test_a_failed_job_takes_down_only_those_that_need_it_and_the_next_run_continues(self, tmp_path):
        store, lines = f"file://{tmp_path}", []
        a, b, c, d = diamond(refuse="b is wrong")
        outcome = execute([a, b, c, d, job("e", d), job("f", a)], store, log=lines.append)
        assert outcome.failed == {"b": "b is wrong"}
        assert outcome.refused == ["b"]
        assert outcome.skipped.keys() == {"d", "e"}
        assert "b" in outcome.skipped["e"]
        assert sorted(outcome.done) == ["a", "c", "f"]
        assert not outcome.complete
        assert "failed   b: b is wrong" in lines
        assert say_failures(outcome, store, lines.append) == 2
        assert lines[-1].endswith("the same command tries only the missing ones again.")
        assert [line for line in lines if line.startswith("skipped")] == [
            f"skipped  {name}: it needs b, which failed" for name in ("d", "e")
        ]
        a, b, c, d = diamond()
        repaired = execute([a, b, c, d, job("e", d), job("f", a)], store, log=lines.append)
        assert sorted(repaired.reused) == ["a", "c", "f"]
        assert repaired.done == ["b", "d", "e"]

    def test_a_process_that_dies_is_replaced_and_given_up_in_the_end(self, tmp_path):
        lines = []
        once, always = job("once", die="once"), job("always", die="always")
        outcome = execute([once, always, job("after", once)], str(tmp_path), log=lines.append)
        assert sorted(outcome.done) == ["after", "once"]
        assert Store(tmp_path).describe(*once.ref)["metrics"]["tries"] == 2
        assert outcome.failed["always"].startswith("Its process died 5 times")
        assert all(len(line.splitlines()) == 1 for line in lines)  # and no stack of Ray's
        assert sum(line.startswith("started  always") for line in lines) == 5

    def test_a_process_may_die_as_often_as_it_saves_a_checkpoint(self, tmp_path):
        lines, mortal = [], Job(Count("k", 8, die_every=2), "mortal")
        outcome = execute([mortal], str(tmp_path), log=lines.append)
        assert outcome.done == ["mortal"]
        assert sum(line.startswith("lost     mortal") for line in lines) >= 3
        assert (Store(tmp_path).fetch(*mortal.ref) / "count").read_text() == "8"

    def test_many_small_jobs_share_two_processes(self, tmp_path):
        first = [job(f"first {i}", number=i) for i in range(50)]
        second = [job(f"second {i}", first[i], first[(i + 1) % 50]) for i in range(50)]
        outcome = execute([*first, *second], str(tmp_path), log=lambda line: None)
        assert len(outcome.done) == 100
        assert [total(str(tmp_path), each) for each in second] == [1 + i + (i + 1) % 50 for i in range(50)]
        pids = {Store(tmp_path).describe(*each.ref)["metrics"]["pid"] for each in (*first, *second)}
        assert len(pids) <= 2

    def test_jobs_run_side_by_side_and_never_more_than_the_cpus(self, tmp_path):
        jobs = [job(f"n{i}", sleep=0.5) for i in range(4)]
        execute(jobs, str(tmp_path), log=lambda line: None)
        metrics = [Store(tmp_path).describe(*each.ref)["metrics"] for each in jobs]
        at_once = [sum(other["started"] <= m["started"] < other["ended"] for other in metrics) for m in metrics]
        assert max(at_once) <= 2

    def test_the_timeline_has_every_try_of_every_job_and_no_process_does_two_at_once(self, tmp_path):
        jobs = [job("lost", die="once"), job("refused", refuse="no"), *(job(f"n{i}", sleep=0.2) for i in range(3))]
        spans = execute(jobs, str(tmp_path), log=lambda line: None).timeline
        tries = sorted((span.job, span.finished) for span in spans)
        assert tries == [("lost", False), ("lost", True), ("n0", True), ("n1", True), ("n2", True), ("refused", False)]
        assert {span.stage for span in spans} == {"add"}
        assert all(ray.nodes()[0]["NodeID"].endswith(span.machine.split()[1]) for span in spans)
        for worker in {span.worker for span in spans}:
            own = sorted((span.started, span.started + span.seconds) for span in spans if span.worker == worker)
            assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(own))

    def test_a_process_without_work_is_let_go_so_that_its_machine_can_be(self, tmp_path):
        both, gone = tmp_path / "both at work", tmp_path / "gone"
        short, long = job("short", wait_for=str(both)), job("long", wait_for=str(gone))
        lines, latest = [], time.monotonic() + 120

        def log(line):
            lines.append(line)
            if sum(said.startswith("started") for said in lines) == 2:
                both.touch()
            if Store(tmp_path).complete(*short.ref):
                alive = psutil.pid_exists(Store(tmp_path).describe(*short.ref)["metrics"]["pid"])
                if not alive or time.monotonic() > latest:
                    gone.write_text("" if not alive else "not")

        outcome = execute([short, long], str(tmp_path), log=log, poll_seconds=0.2, idle_seconds=0.5)
        assert sorted(outcome.done) == ["long", "short"]
        assert gone.read_text() == ""

    def test_a_process_that_nobody_calls_gives_its_cpus_back(self, tmp_path):
        until_free(2)  # of what earlier tests left behind
        forgotten = remote(str(tmp_path), 2.0, greeted_within=0.5)
        until_free(0)
        assert execute([job("a")], str(tmp_path), log=lambda line: None).done == ["a"]
        with pytest.raises(RayActorError):
            ray.get(forgotten.machine.remote())

    def test_a_process_that_nobody_calls_any_more_gives_its_cpus_back_too_but_not_while_it_works(self, tmp_path):
        forgotten, long = remote(str(tmp_path), 2.0, greeted_within=0.3), job("long", sleep=5)
        assert "reused" not in ray.get(forgotten.run.remote(long))
        assert execute([job("a")], str(tmp_path), log=lambda line: None).done == ["a"]
        with pytest.raises(RayActorError):
            ray.get(forgotten.machine.remote())

    def test_machines_that_are_there_but_busy_are_waited_for_without_end(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RAY_ADDRESS", "of a cluster that others use too")
        other = remote(str(tmp_path / "other"), 2.0)
        ray.get(other.machine.remote())
        lines = []

        def log(line):
            lines.append(line)
            if sum(said.startswith("waiting") for said in lines) == 5:
                ray.kill(other)

        assert execute([job("a")], str(tmp_path), log=log, poll_seconds=0.3, wait_for_nodes=0.5).done == ["a"]

    def test_a_machine_that_never_comes_is_one_sentence(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RAY_ADDRESS", "of a cluster, where more machines may come")
        lines = []
        with pytest.raises(ClusterError, match=r"No machine came within 1\.0s: 1 job waits for .*1 CPUs and 3 GPUs.*"):
            execute([job("a", num_gpus=3)], str(tmp_path), log=lines.append, poll_seconds=0.3, wait_for_nodes=1.0)
        assert any(line.startswith("waiting  1 job waits for a machine with 1 CPUs and 3 GPUs") for line in lines)

    def test_actors_of_one_size_make_way_for_another(self, tmp_path):
        small = [job(f"small {i}") for i in range(3)]
        large = job("large", *small, num_cpus=2)
        outcome = execute([*small, large, job("last", large)], str(tmp_path), log=lambda line: None)
        assert outcome.done[-2:] == ["large", "last"]
        assert Store(tmp_path).describe(*large.ref)["metrics"]["threads"] == 2

    def test_a_wish_for_more_cpus_than_any_machine_has_is_cut_and_said(self, tmp_path):
        lines = []
        big = job("big", num_cpus=64)
        outcome = execute([big], str(tmp_path), log=lines.append)
        assert outcome.done == ["big"]
        assert any("64 CPUs" in line and "2 CPUs" in line for line in lines)
        assert Store(tmp_path).describe(*big.ref)["metrics"]["threads"] == 64  # by which its sums round

    def test_progress_is_shown_while_a_job_runs(self, tmp_path):
        lines, shown = [], tmp_path / "shown"

        def log(line):
            lines.append(line)
            if line.startswith("running  count to 1000000") and "steps/s" in line:
                shown.touch()
                raise KeyboardInterrupt

        counting = Job(Count("k", 1_000_000), "count to 1000000")
        with pytest.raises(KeyboardInterrupt):
            execute([counting], str(tmp_path), log=log, poll_seconds=0.3)
        assert "/1e+06 steps" in lines[-1]
        assert "value=" in lines[-1]
        assert any(line.startswith("0/1 jobs done, 1 running") for line in lines)

    def test_a_node_exports_what_its_jobs_do(self, tmp_path):
        """Prometheus reads the same address."""
        (node,) = ray.nodes()
        address, wanted = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", 'job="counting"'

        def log(line):
            with urllib.request.urlopen(address, timeout=10) as answer:
                lines.extend(said for said in answer.read().decode().splitlines() if wanted in said)
            if any(said.startswith("ray_mbml_value") for said in lines):
                raise KeyboardInterrupt

        lines = []
        counting = Job(Count("k", 3_000, 0.02), "counting")
        with pytest.raises(KeyboardInterrupt):
            execute([counting], str(tmp_path), log=log, poll_seconds=1.0)
        found = {line.split("{")[0]: line for line in lines}
        assert found.keys() >= {"ray_mbml_done", "ray_mbml_total", "ray_mbml_rate", "ray_mbml_value"}
        assert 'unit="steps"' in found["ray_mbml_done"]
        assert 'stage="count"' in found["ray_mbml_done"]
        assert 'metric="value"' in found["ray_mbml_value"]
        assert float(found["ray_mbml_total"].split()[-1]) == 3_000

    def test_damage_stops_what_needs_it_and_a_repair_makes_that_and_what_stands_on_it(self, tmp_path):
        store, lines = str(tmp_path), []
        a, b, c, d = diamond()
        alone = job("alone", number=7)
        execute([a, b, c, d, alone], store, log=lines.append)
        damaged = tmp_path.joinpath(*b.ref) / "total"
        damaged.write_text("9")
        above = job("above", b)
        outcome = execute([above], store, log=lines.append)
        assert outcome.refused == ["above"]
        assert outcome.failed["above"].startswith(f"{damaged} is damaged: it has sha256 ")
        assert outcome.failed["above"].endswith(
            "the same command with --repair (of make: ARGS=--repair) makes it anew."
        )
        jobs = [a, b, c, d, alone, above]
        discard_damaged(jobs, Store(store), lines.append)
        assert [line.split(":")[0] for line in lines if line.startswith("repairs")] == ["repairs  b", "repairs  d"]
        assert not any("--repair" in line for line in lines if line.startswith("repairs"))
        repaired = execute(jobs, store, log=lines.append)
        assert sorted(repaired.reused) == ["a", "alone", "c"]
        assert sorted(repaired.done) == ["above", "b", "d"]
        assert total(store, d) == 5

    def test_an_input_that_nobody_makes_is_named(self, tmp_path):
        orphan = Job(Add("a", inputs=(Ref("add", "nowhere"),)), "a")
        with pytest.raises(StoreError, match=r"a needs .*add/nowhere"):
            execute([orphan], str(tmp_path), log=lambda line: None)


def test_interrupts_leave_no_process_and_the_next_run_continues(tmp_path):
    program = str(Path(__file__).with_name("interrupted_run.py"))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    jobs = [Job(Count(f"count {i}", 1_000_000), f"count {i}") for i in range(2)]
    counts = [tmp_path / "count" / f"{each.ref.key}.partial" / "count" for each in jobs]

    def counted():
        return [int(count.read_text() or 0) if count.exists() else 0 for count in counts]

    def run_until(minimum, interrupt):
        """Start the program, interrupt it when both jobs are past `minimum`."""
        with subprocess.Popen(
            [sys.executable, program, str(tmp_path), "1000000"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # a process group of its own, as a terminal gives
        ) as process:
            while min(counted()) <= minimum:
                assert process.poll() is None
                time.sleep(0.1)
            children = psutil.Process(process.pid).children(recursive=True)
            interrupt(process.pid)
            output, _ = process.communicate(timeout=60)
        assert "interrupted" in output
        assert process.returncode == 130
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive

    run_until(5, lambda pid: os.killpg(pid, signal.SIGINT))  # Ctrl-C reaches Ray's processes as well
    # A closed terminal hangs up on all of them.
    for interrupt in (lambda pid: os.kill(pid, signal.SIGTERM), lambda pid: os.killpg(pid, signal.SIGHUP)):
        reached = counted()
        run_until(max(reached) + 2, interrupt)
        for count, before in zip(counts, reached, strict=True):
            assert before - 1 <= int(count.with_name("resumed").read_text()) <= before


def test_a_command_whose_ray_does_not_answer_any_more_ends_all_the_same(tmp_path):
    program, one = str(Path(__file__).with_name("interrupted_run.py")), Job(Count("count 0", 1_000_000), "count 0")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, program, str(tmp_path), "1000000"]
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        while not (tmp_path / "count" / f"{one.ref.key}.partial" / "count").exists():
            assert process.poll() is None
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        named("gcs_server", children)[0].suspend()
        process.terminate()
        _, said = process.communicate(timeout=50)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "Interrupted. What is finished is kept; the same command continues."
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


@pytest.mark.parametrize("started", ["gcs_server", "raylet"])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_stopped_while_ray_starts_ends_all_the_same(tmp_path, sent, started):
    program = str(Path(__file__).with_name("interrupted_run.py"))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, program, str(tmp_path), "1000000"]
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        children: list[psutil.Process] = []
        while not named(started, children):
            assert process.poll() is None
            time.sleep(0.01)
            children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, sent)
        _, said = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
