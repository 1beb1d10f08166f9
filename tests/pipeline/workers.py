"""Workers that do next to nothing, for the tests of the scheduler; in a module that actors can import."""

import os
import time
from pathlib import Path
from typing import Any

import torch

from actors.job import Job
from actors.store import Output
from actors.worker import Worker


class Adder(Worker):
    """Writes its payload's number plus the sum of its inputs; misbehaves when the payload says so."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        if job.payload.get("raise"):
            raise ValueError(job.payload["raise"])
        mark = out.path / "tried"
        if job.payload.get("die") == "always" or (job.payload.get("die") == "once" and not mark.exists()):
            mark.touch()
            os._exit(1)
        total = job.payload["number"]
        for directories in inputs.values():
            total += sum(int((directory / "total").read_text()) for directory in directories)
        time.sleep(job.payload.get("sleep", 0.0))
        (out.path / "total").write_text(str(total))
        return {"total": total, "pid": os.getpid(), "threads": torch.get_num_threads(), "ended": time.time()}


class OtherAdder(Adder):
    """The same work in another kind of actor."""


class Counter(Worker):
    """Counts to `payload["total"]`, a step at a time, and keeps the count in a file as its checkpoint."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        file = out.path / "count"
        first = count = int(file.read_text()) if file.exists() else 0
        while count < job.payload["total"]:
            self.report(count, job.payload["total"], "steps", value=torch.tensor(float(count)))
            time.sleep(0.05)
            count += 1
            temporary = out.path / ".count.new"
            temporary.write_text(str(count))
            os.replace(temporary, file)
        return {"first": first}
