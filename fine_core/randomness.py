"""Random streams keyed by their purpose: a draw does not depend on earlier draws.

A training step's generator is a function of (seed, "train", step): a resumed run draws the same numbers.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def stream_seed(seed: int, stream: str, *keys: int) -> int:
    """A 63-bit seed for the stream named `stream` of `seed` (>= 0), distinct for every tuple of `keys`."""
    entropy = [seed, zlib.crc32(stream.encode()), len(keys), *keys]  # numpy ignores trailing zeros
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def stream_generator(seed: int, stream: str, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by `stream_seed`."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, stream, *keys))
