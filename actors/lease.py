"""Claims on an artefact: in a folder the lock of a file; behind a URL, where none can be locked, a small file that its
owner renews.

Where the protocol can create a file only if it is not there (S3, GCS), two cannot take a lease at once; elsewhere a
second look tells who was last. What a lease guards may be done twice (the second result is dropped), so that a machine
that was asleep, or two that take over in the same moment, cost work and nothing else.
"""

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

RENEWED = 10.0
"""Seconds between two renewals."""
EXPIRES = 30.0
"""Seconds after which a lease that nobody renewed is taken over; no clock is compared with another machine's."""
_SETTLES = 0.05
_LOOKS = 0.5


def locked(path: Path) -> IO | None:
    """The file, opened and locked; None where another process holds it, or its folder has become the artefact."""
    with suppress(BlockingIOError, FileNotFoundError), ExitStack() as stack:
        file = stack.enter_context(path.open("w"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            stack.pop_all()
            return file
    return None


@contextmanager
def leased(fs: Any, place: str, made: Callable[[], bool], waits: Callable[[], None]) -> Iterator[None]:
    """Hold the lease at `place`, or find that what it guards is `made`; `waits` is called while another holds it."""
    mine, seen, since = uuid.uuid4().hex, None, time.monotonic()
    while not made():
        if (there := _read(fs, place)) is None:
            if _took(fs, place, mine.encode()):
                with _renewing(fs, place, mine):
                    yield
                return
        elif there != seen:
            seen, since = there, time.monotonic()
        elif time.monotonic() - since > EXPIRES:
            _drop(fs, place, there)
            continue
        waits()
        time.sleep(_LOOKS)
    yield


@contextmanager
def _renewing(fs: Any, place: str, mine: str) -> Iterator[None]:
    """Renew a lease until the end, then give it back; one that another has taken over is left to it."""
    ended = threading.Event()

    def renew() -> None:
        own, number = mine.encode(), 0
        while not ended.wait(RENEWED):
            with suppress(Exception):  # a lost connection: the next renewal may come through
                if _read(fs, place) != own:
                    return
                number += 1
                own = f"{mine} {number}".encode()
                fs.pipe_file(place, own)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):  # it expires
            there = _read(fs, place)
            if there is not None and there.split()[:1] == [mine.encode()]:
                fs.rm_file(place)


def _took(fs: Any, place: str, own: bytes) -> bool:
    fs.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
    with suppress(FileExistsError):
        fs.pipe_file(place, own, mode="create")
        time.sleep(_SETTLES)
        return _read(fs, place) == own
    return False


def _drop(fs: Any, place: str, expired: bytes) -> None:
    with suppress(FileNotFoundError):
        if _read(fs, place) == expired:
            fs.rm_file(place)


def _read(fs: Any, place: str) -> bytes | None:
    with suppress(FileNotFoundError):
        return fs.cat_file(place)
    return None
