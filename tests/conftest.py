"""Test-wide settings."""

import torch

# Small products gain nothing from a second thread, and lose minutes where another process has the other core.
torch.set_num_threads(1)
