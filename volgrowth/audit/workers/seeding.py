"""One generator of random numbers for each purpose, so that a score depends on nothing but its row and the seed."""

import hashlib

import torch


def seeded(seed: int, *purpose: float | str) -> torch.Generator:
    """Return a CPU generator for one purpose of an audit, independent of all others.

    Args:
        seed: the audit's seed.
        purpose: a word for what is drawn, and what it is drawn for: a row, a level, a number.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
