"""Seeds that depend on what is run, never on when or where it runs."""

import hashlib

import torch


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the printed form of `parts`, e.g. `seed_of(run_seed, "collect", task)`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of its own, seeded with `seed_of(*parts)`."""
    return torch.Generator(device=device).manual_seed(seed_of(*parts))
