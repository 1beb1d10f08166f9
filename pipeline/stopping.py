"""What a command does about the signals that stop it."""

import signal
import time
from types import FrameType

INTERRUPTED = "\nInterrupted. Finished jobs are kept; the same command continues."
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ONE_SECONDS = 2.0
_stopped = -_ONE_SECONDS


def listen() -> None:
    """Let all of them be KeyboardInterrupt, but those that the command was told to ignore, as nohup does."""
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopped
    # More of them at once are one: what the first one began to clean is not cut short.
    if (now := time.monotonic()) - _stopped > _ONE_SECONDS:
        _stopped = now
        raise KeyboardInterrupt
