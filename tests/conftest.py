"""Test-wide settings, and the one Ray that tests share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.signals import hear

# Small products gain nothing from a second thread, and lose minutes where another process has the other core.
torch.set_num_threads(1)
hear()


_WITHOUT_RAY = Path(__file__).with_name("mbml")
_WITH_CLUSTERS = ("test_cluster.py", "test_four_ways.py", "test_growing_cluster.py", "test_jobs.py")
"""Files that start heads of their own, one after the other: their defaults are the same ports."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests for the two workers of `make test`: what shares the embedded Ray stays together, and so does every
    file that starts a Ray of its own; the others go where there is room."""
    sharing = {item.path for item in items if "embedded_ray" in getattr(item, "fixturenames", ())}
    for item in items:
        if _WITHOUT_RAY not in item.path.parents:
            clusters = "clusters" if item.path.name in _WITH_CLUSTERS else str(item.path)
            group = "ray" if item.path in sharing else clusters
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def embedded_ray() -> Iterator[str]:
    """An embedded Ray of two CPUs; what runs `connect` while it is there uses it, too."""
    from pipeline.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connect(num_cpus=2) as where:
            yield where


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of torch threads back, which a host sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def impatient() -> Iterator[None]:
    """Fails a test that waits, as a read from a pipe does."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
