"""`python -m pipeline`: the command line (pipeline/command.py), and one sentence for whoever stops it at any moment."""

import sys

from pipeline.stopping import INTERRUPTED, at_once, leave, listen, stopped


def console() -> None:
    """What `python -m pipeline` and, after `pip install .`, the command `mbml` do."""
    if sys.stdout:  # None where it was closed
        sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    listen(at_once)
    from pipeline.command import main  # takes seconds

    listen()
    try:
        code = main()
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, Exception) and not stopped():  # which modules that are loaded later may make of one
            raise
        print(INTERRUPTED, file=sys.stderr, flush=True)
        code = 130
    leave(code)


if __name__ == "__main__":
    console()
