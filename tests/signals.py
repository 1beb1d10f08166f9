"""Signals of the commands that tests stop."""

import signal


def hear() -> None:
    """Take back what `nohup`, or a shell with `&`, has this process and so all that it starts ignore: commands that are
    told to ignore a signal do."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
