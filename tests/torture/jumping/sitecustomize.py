"""For PYTHONPATH: every process of Python sees a wall clock that jumps by days at each look."""

import random
import time

_true, _draws = time.time, random.Random(0)


def _jumping() -> float:
    return _true() + _draws.choice((0, -86_400, 300_000))


time.time = _jumping
