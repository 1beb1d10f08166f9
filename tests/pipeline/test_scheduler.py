"""The scheduler on a real embedded Ray of two CPUs, shared by the class; the graph alone needs none."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from actors.job import Job
from actors.store import Store, StoreError
from actors.worker import Progress
from pipeline.cluster import ClusterError
from pipeline.graph import Graph, GraphError
from pipeline.scheduler import Node, connect, duration, execute, progress_line
from tests.pipeline.workers import Adder, Counter, OtherAdder


@pytest.fixture(scope="class")
def embedded_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connect(num_cpus=2) as where:
            assert "2 CPUs" in where
            yield


def node(name, *needs, worker=Adder, num_cpus=1.0, **payload):
    """A job called `name` whose key is its name, needing the artefacts of the jobs called `needs`."""
    inputs = {"numbers": [("sum", need) for need in needs]}
    return Node(Job("sum", name, name, {"number": 1} | payload, inputs), worker, num_cpus)


def total(store, name):
    return int((Store(store).fetch("sum", name) / "total").read_text())


def diamond(**payloads):
    return [
        node("a", **payloads.get("a", {})),
        node("b", "a", **payloads.get("b", {})),
        node("c", "a", worker=OtherAdder, **payloads.get("c", {})),
        node("d", "b", "c", **payloads.get("d", {})),
    ]


def test_two_jobs_of_one_name_or_artefact_and_circles_are_refused():
    with pytest.raises(GraphError, match="'a'"):
        Graph([node("a"), node("a")])
    with pytest.raises(GraphError, match="same artefact sum/a"):
        Graph([node("a"), Node(Job("sum", "other", "a"), Adder)])
    with pytest.raises(GraphError, match="wait for each other"):
        Graph([node("a", "b"), node("b", "a")])


def test_what_has_to_run_is_counted_backwards_from_the_results():
    graph = Graph(diamond())
    assert graph.to_run([]) == {"a", "b", "c", "d"}
    assert graph.to_run(["d"]) == set()
    assert graph.to_run(["b", "c"]) == {"d"}
    assert graph.to_run(["b"]) == {"a", "c", "d"}
    assert graph.to_run(["a", "b", "c", "d"]) == set()
    assert sorted(graph.downstream("a")) == ["b", "c", "d"]


def test_lines_for_people():
    progress = Progress("bcq tasks 0-4", 3200, 6000, "it", 41.2, 68.0, {"return": 187.21})
    line = progress_line(progress)
    assert line == "running  bcq tasks 0-4   3200/6000 it  53%  41.2 it/s  1m08s left  return=187.2"
    assert [duration(s) for s in (0.04, 9.96, 59.7, 3599.8, 7500)] == [
        "0.0s",
        "10.0s",
        "1m00s",
        "1h00m",
        "2h05m",
    ]


@pytest.mark.usefixtures("embedded_ray")
class TestExecute:
    def test_gpus_that_no_machine_has_are_refused(self, tmp_path):
        with pytest.raises(ClusterError, match=r"Adder asks for 0\.5 GPUs, but no machine has more than 0; "):
            execute([replace(node("a"), num_gpus=0.5)], str(tmp_path))

    def test_a_diamond_runs_in_order_and_afterwards_only_what_is_needed(self, tmp_path):
        store, lines = str(tmp_path), []
        outcome = execute(diamond(), store, log=lines.append)
        assert outcome.complete
        assert sorted(outcome.done) == ["a", "b", "c", "d"]
        assert outcome.done[0] == "a"
        assert outcome.done[-1] == "d"
        assert total(store, "d") == 5  # 1 + (1 + 1) + (1 + 1)
        assert sum(line.startswith("finished") for line in lines) == 4
        (cost,) = outcome.cost
        assert (cost.stage, cost.jobs, cost.reused) == ("sum", 4, 0)
        assert cost.wall_seconds > 0
        assert cost.peak_memory_mb > 10
        assert Store(store).describe("sum", "a")["metrics"]["threads"] == 1

        again = execute(diamond(), store, log=lines.append)
        assert again.reused == ["a", "b", "c", "d"]
        assert not again.done
        assert again.cost[0].reused == 4
        assert again.cost[0].wall_seconds == 0
        assert again.cost[0].work_seconds == cost.work_seconds

        for name in ("a", "d"):
            (tmp_path / "sum" / name / "manifest.json").unlink()
        partly = execute(diamond(), store, log=lines.append)
        assert (partly.unneeded, partly.reused, partly.done) == (["a"], ["b", "c"], ["d"])

    def test_a_failed_job_takes_down_only_those_that_need_it_and_the_next_run_continues(self, tmp_path):
        store, lines = f"file://{tmp_path}", []
        broken = [*diamond(b={"raise": "b is wrong"}), node("e", "d"), node("f", "a")]
        outcome = execute(broken, store, log=lines.append)
        assert outcome.failed == {"b": "b is wrong"}
        assert outcome.skipped.keys() == {"d", "e"}
        assert "b" in outcome.skipped["e"]
        assert sorted(outcome.done) == ["a", "c", "f"]
        assert not outcome.complete
        assert "failed   b: b is wrong" in lines
        repaired = execute([*diamond(), node("e", "d"), node("f", "a")], store, log=lines.append)
        assert sorted(repaired.reused) == ["a", "c", "f"]
        assert repaired.done == ["b", "d", "e"]

    def test_a_process_that_dies_is_started_again_and_given_up_in_the_end(self, tmp_path):
        nodes = [node("once", die="once"), node("always", die="always"), node("after", "once")]
        outcome = execute(nodes, str(tmp_path), log=lambda line: None)
        assert sorted(outcome.done) == ["after", "once"]
        assert "process died" in outcome.failed["always"]

    def test_many_small_jobs_share_two_processes(self, tmp_path):
        first = [node(f"first {i}".replace(" ", "-"), number=i) for i in range(100)]
        second = [node(f"second-{i}", f"first-{i}", f"first-{(i + 1) % 100}") for i in range(100)]
        outcome = execute([*first, *second], str(tmp_path), log=lambda line: None)
        assert len(outcome.done) == 200
        assert [total(str(tmp_path), f"second-{i}") for i in range(100)] == [1 + i + (i + 1) % 100 for i in range(100)]
        pids = {Store(tmp_path).describe("sum", name)["metrics"]["pid"] for name in outcome.done}
        assert len(pids) == 2

    def test_jobs_run_side_by_side_and_never_more_than_the_cpus(self, tmp_path):
        nodes = [node(f"n{i}", sleep=0.5) for i in range(4)]
        outcome = execute(nodes, str(tmp_path), log=lambda line: None)
        metrics = [Store(tmp_path).describe("sum", name)["metrics"] for name in outcome.done]
        spans = [(m["ended"] - 0.5, m["ended"]) for m in metrics]
        at_once = [sum(start <= s < end for start, end in spans) for s, _ in spans]
        assert max(at_once) == 2

    def test_a_wish_for_more_cpus_than_any_machine_has_is_cut_and_said(self, tmp_path):
        lines = []
        outcome = execute([node("big", num_cpus=64)], str(tmp_path), log=lines.append)
        assert outcome.done == ["big"]
        assert any("64 CPUs" in line and "2 CPUs" in line for line in lines)
        assert Store(tmp_path).describe("sum", "big")["metrics"]["threads"] == 2

    def test_progress_is_shown_while_a_job_runs(self, tmp_path):
        lines = []
        job = Job("count", "count to 40", "k", {"total": 40})
        execute([Node(job, Counter)], str(tmp_path), log=lines.append, poll_seconds=0.3)
        shown = [line for line in lines if line.startswith("running  count to 40")]
        assert any("/40 steps" in line and "steps/s" in line and "value=" in line for line in shown)
        assert any(line.startswith("0/1 jobs done, 1 running") for line in lines)

    def test_an_input_that_nobody_makes_is_named(self, tmp_path):
        with pytest.raises(StoreError, match="sum/nowhere"):
            execute([node("a", "nowhere")], str(tmp_path), log=lambda line: None)


def test_interrupts_leave_no_process_and_the_next_run_continues(tmp_path):
    counts = [tmp_path / "count" / f"key{i}.partial" / "count" for i in range(2)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def run_until(minimum, interrupt):
        """Start the program, interrupt it when both jobs are past `minimum`; returns the counts seen meanwhile."""
        with subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("interrupted_run.py")), str(tmp_path), "100000"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # a process group of its own, as a terminal gives
        ) as process:
            seen, deadline = [], time.monotonic() + 40
            while not seen or min(seen[-1]) <= minimum:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
                if all(count.exists() for count in counts):
                    seen.append([int(count.read_text()) for count in counts])
            children = psutil.Process(process.pid).children(recursive=True)
            while not any("Host" in " ".join(child.cmdline()) for child in children):
                assert time.monotonic() < deadline  # for a moment Ray calls a host by the name of its job
                time.sleep(0.02)
                children = psutil.Process(process.pid).children(recursive=True)
            interrupt(process.pid)
            output, _ = process.communicate(timeout=10)
        assert "interrupted" in output
        assert process.returncode == 130
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive
        return seen

    run_until(5, lambda pid: os.killpg(pid, signal.SIGINT))  # Ctrl-C reaches Ray's processes as well
    reached = [int(count.read_text()) for count in counts]
    seen = run_until(max(reached) + 2, lambda pid: os.kill(pid, signal.SIGTERM))
    assert seen[0] == reached
    assert all(now >= before for pair in seen for now, before in zip(pair, reached, strict=True))
