"""What became of the jobs of a run, what they cost, and who worked on what when."""

from dataclasses import dataclass, field


@dataclass
class StageCost:
    """What a stage cost; a reused artefact counts with the work its manifest tells, but no wall time."""

    stage: str
    jobs: int = 0
    reused: int = 0
    wall_seconds: float = 0.0
    """From the start of the stage's first job in this run to the end of its last."""
    work_seconds: float = 0.0
    """Sum over its jobs."""
    peak_memory_mb: float = 0.0
    """Largest of its jobs."""


@dataclass
class Span:
    """When a process worked on a job."""

    job: str
    stage: str
    machine: str
    worker: int
    """Number of the process in this run."""
    started: float
    """Seconds since the run's start."""
    seconds: float
    finished: bool
    """False where the job failed, or its process was lost."""


@dataclass
class Outcome:
    """What became of every job, by name: done, reused, failed or skipped."""

    done: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Name -> what went wrong, one sentence."""
    refused: list[str] = field(default_factory=list)
    """Those that failed because of what they were given (a ValueError): damaged data, an impossible setting."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Name -> why it could not run."""
    cost: list[StageCost] = field(default_factory=list)
    wall_seconds: float = 0.0
    timeline: list[Span] = field(default_factory=list)
    """What was done in this run, in the order of its ends."""

    @property
    def complete(self) -> bool:
        return not self.failed and not self.skipped
