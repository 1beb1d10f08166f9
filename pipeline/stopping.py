"""What a command does about the signals that stop it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = "\nInterrupted. What is finished is kept; the same command continues."
"""The last line of a command that was stopped."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ONE_SECONDS = 2.0
"""How long after a signal others belong to it: what the first one began to clean is not cut short."""
_stopped = -_ONE_SECONDS


def at_once(*_: object) -> NoReturn:
    """End. A handler while modules are loaded, as some in C swallow KeyboardInterrupt or make another error of it."""
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(130)


def listen(handler: Callable[..., None] | None = None) -> None:
    """Let all of them be KeyboardInterrupt, or for `handler`, but those that the command is to ignore, as by nohup."""
    sys.unraisablehook = _swallowed
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler or _stop)


def stopped() -> bool:
    """Whether one of them came."""
    return _stopped > 0


def leave(code: int) -> NoReturn:
    """End this process, in which no signal has a say any more: what it did is done."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    if code != 130:
        sys.exit(code)
    print(end="", flush=True)  # after KeyboardInterrupt Python may end itself as if by SIGINT, whatever the code
    os._exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopped
    if (now := time.monotonic()) - _stopped > _ONE_SECONDS:
        _stopped = now
        raise KeyboardInterrupt


def _swallowed(lost: Any) -> None:
    """What a handler raises in a callback of Python's, such as those around a fork, ends there: the signal again."""
    ours = isinstance(lost.exc_value, KeyboardInterrupt)
    if ours or (isinstance(lost.exc_value, SystemExit) and lost.exc_value.code == signal.SIGTERM):  # so Ray's handler
        threading.Timer(0.01, _again).start()
    else:
        sys.__unraisablehook__(lost)


def _again() -> None:
    global _stopped
    _stopped = -_ONE_SECONDS
    os.kill(os.getpid(), signal.SIGINT)
