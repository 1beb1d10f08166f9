"""A measured process of this project's environment: `python -m benchmarks.serve MODULE:BUILD ARGUMENTS`."""

from __future__ import annotations

import importlib
import json
import os
import sys

import torch

from benchmarks.peers.protocol import serve

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module, _, name = sys.argv[1].partition(":")
    serve(getattr(importlib.import_module(module), name), json.loads(sys.argv[2]))
