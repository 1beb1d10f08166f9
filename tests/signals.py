"""Commands that tests stop: their signals, and which of their processes is which."""

import signal
from collections.abc import Iterable
from contextlib import suppress

import psutil


def hear() -> None:
    """Take back what `nohup`, or a shell with `&`, has this process and so all that it starts ignore: commands that are
    told to ignore a signal do."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def named(part: str, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those with this in their name; Ray's short-lived ones may be gone before they are asked."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if part in process.name():
                found.append(process)
    return found
