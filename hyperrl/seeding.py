"""One seed for a run, and a seed of its own for everything that draws random numbers in it."""

from __future__ import annotations

import hashlib
import os


def run_seed() -> int:
    """The run's seed, as Lightning's ``seed_everything`` has published it; 0 if it was never called."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def derive_seed(seed: int, purpose: str, rank: int = 0, index: int = 0) -> int:
    """Derives the seed of one generator.

    Args:
        seed: the run's seed.
        purpose: what the generator draws: ``train``, ``val``, ``actions``, ``minibatches``, ...
        rank: rank of the process, so that ranks see different tasks.
        index: counts generators of one purpose, such as successive validations.

    Returns:
        A 63-bit integer; different arguments give unrelated streams.

    Example:
        >>> derive_seed(3, "train") != derive_seed(3, "val")
        True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{rank}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
