"""`python -m pipeline`: the command line (pipeline/command.py), and one sentence for whoever stops it at any moment."""

import sys

from pipeline.stopping import INTERRUPTED, leave, listen


def console() -> None:
    """What `python -m pipeline` and, after `pip install .`, the command `mbml` do."""
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    listen()
    try:
        from pipeline.command import main  # takes seconds

        code = main()
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr, flush=True)
        code = 130
    leave(code)


if __name__ == "__main__":
    console()
