"""A measured process of this project's environment: `python -m benchmarks.serve MODULE:BUILD ARGUMENTS`."""

from __future__ import annotations

import json
import os
import pkgutil
import sys

import torch

from benchmarks.peers.protocol import serve
from mbml.allocation import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # as in an actor
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    serve(pkgutil.resolve_name(sys.argv[1]), json.loads(sys.argv[2]))
