"""Randomness by address: every draw is a pure function of (seed, purpose, step, index).

There is no state to save and none to restore. Streams come from NumPy's counter-based Philox
generator, keyed with 128 bits of a hash of the address (torch's CPU generator keeps only 32 bits
of its seed, so that distinct addresses could share a stream).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_BLOCK = 16  # images whose sampling noise is drawn together; part of what a seed means


def _digest(seed: int, purpose: str, step: int, index: int) -> bytes:
    address = f"{seed}/{purpose}/{step}/{index}".encode()
    return hashlib.blake2b(address, digest_size=16).digest()


def generator(seed: int, purpose: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """The NumPy generator at an address."""
    key = np.frombuffer(_digest(seed, purpose, step, index), dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key))


def normal(
    shape: tuple[int, ...],
    seed: int,
    purpose: str,
    step: int = 0,
    index: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal float32 noise of `shape` at an address.

    Drawn on `device` itself where that is an accelerator: the same to the bit on the same type of
    device, another draw on another type.
    """
    device = torch.device(device)
    if device.type == "cpu":
        draw = generator(seed, purpose, step, index).standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(draw)
    key = int.from_bytes(_digest(seed, purpose, step, index)[:8], "little", signed=True)
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(key), device=device)


def image_noise(
    shape: tuple[int, ...], first: int, count: int, seed: int, purpose: str, step: int = 0
) -> Tensor:
    """Noise (count, *shape) for the images with global indices first … first + count - 1.

    Image i's noise depends on i alone, not on which other images are drawn with it. Always drawn
    on the CPU, so that a seed names the same image on every device.
    """
    blocks = range(first // _BLOCK, (first + max(count, 1) - 1) // _BLOCK + 1)
    noise = torch.cat([normal((_BLOCK, *shape), seed, purpose, step, b) for b in blocks])
    start = first - blocks[0] * _BLOCK
    return noise[start : start + count]


@contextmanager
def torch_seeded(seed: int, purpose: str, step: int = 0, index: int = 0) -> Iterator[None]:
    """Run torch's own draws (initial weights, dropout) from an address.

    The caller's global random state, on the CPU and the current GPU, is put back afterwards.
    """
    key = int.from_bytes(_digest(seed, purpose, step, index)[:8], "little", signed=True)
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(key)  # torch.manual_seed would seed every GPU
        if devices:
            torch.cuda.manual_seed(key)
        yield
