"""The randomness of the door: one keyed cryptographic stream per use, and the noise of every release.

The streams are ChaCha20 (RFC 8439) with a separate key for every name and index, so that no use of randomness shifts or
repeats another. The key of a run is either *repeatable*, a function of recipe, seed and data, or *secret*, 256 bits of
the operating system that nobody else has. Whoever knows the key can subtract the noise, so a repeatable run is private
only against those who do not know its seed.

Noise is drawn and added in float64, and the noised sum is rounded to a grid that depends only on the noise's std.
Textbook floating-point noise has gaps that depend on the sum to which it is added (Mironov 2012). A grid a million
times finer than the noise, in which every point stands for billions of float64 numbers, hides them and costs no
accuracy. This is the usual countermeasure, not a proof: the noise itself is still a float64 approximation of a
Gaussian, cut at 9.4 std.
"""

import hashlib
import hmac
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

from dpdm.errors import UserError
from dpdm.rng import default_generator

KEY_BYTES = 32
GRID_BITS = 20  # a release is rounded to a power of two at most this many bits below its noise's std


class _Complete(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made._complete = True
        return made


class NoCopy(metaclass=_Complete):
    """Base of objects that must not be copied: a copy would release again with the same noise and without an event.

    Once made, they take no new attribute: the check of traces does not look into them, so that private data in a new
    attribute would pass it.
    """

    _complete = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self._complete and not hasattr(self, name):
            raise UserError(
                f"{type(self).__name__} takes no new attribute, and was given {name!r}: what a callback keeps there is "
                "a release outside the ledger; keep public values in a variable, and private ones nowhere"
            )
        super().__setattr__(name, value)

    def __copy__(self, *_: Any) -> None:
        raise UserError(
            f"{type(self).__name__} cannot be copied or pickled: a copy would release with the same noise and no event "
            "in the ledger; plan one more mechanism to release twice"
        )

    __deepcopy__ = __reduce_ex__ = __copy__


class Randomness(NoCopy):
    """Named, independent streams under one key of 32 bytes; `scope` separates those of different mechanisms."""

    def __init__(self, key: bytes, scope: Sequence[str] = ()):
        if len(key) != KEY_BYTES:
            raise UserError(f"a key of the noise needs {KEY_BYTES} bytes, got {len(key)}")
        self._key, self._scope = key, tuple(scope)

    @classmethod
    def repeatable(cls, seed: int, *facts: str) -> "Randomness":
        """The streams that follow from public facts of the run, such as recipe and digest of the images."""
        return cls(hashlib.sha256(json.dumps([seed, *facts]).encode()).digest())

    def scoped(self, name: str) -> "Randomness":
        """The streams of one mechanism."""
        return Randomness(self._key, (*self._scope, name))

    def words(self, name: str, *index: int, count: int) -> np.ndarray:
        """`count` uniform 64-bit words of the stream `name` (and, for example, the index of a step)."""
        cipher = Cipher(algorithms.ChaCha20(self._subkey(name, index), bytes(16)), mode=None)
        return np.frombuffer(cipher.encryptor().update(bytes(8 * count)), np.uint64)

    def uniform(self, name: str, *index: int, count: int) -> np.ndarray:
        """`count` numbers (float64) uniform on the multiples of 2^-53 in [0, 1)."""
        return (self.words(name, *index, count=count) >> np.uint64(11)) * 2.0**-53

    def normal(self, name: str, *index: int, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers (float64, on the CPU), by Box and Muller (1958) from 64-bit uniform ones."""
        size = math.prod(shape)
        half = (size + 1) // 2
        u = torch.from_numpy(self.words(name, *index, count=2 * half).astype(np.float64))
        u.add_(1).mul_(2.0**-64)  # in (0, 1]
        radius, angle = u[:half].log().mul_(-2).sqrt_(), u[half:].mul_(2 * math.pi)
        return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)])[:size].view(*shape)

    @contextmanager
    def torch_default(self, name: str, *index: int) -> Iterator[None]:
        """Inside the block, torch's default generator is this stream, for the draws of losses and statistics."""
        with default_generator(int.from_bytes(self._subkey(name, index)[:4], "big")):
            yield

    def _subkey(self, name: str, index: tuple[int, ...]) -> bytes:
        label = json.dumps([*self._scope, name, list(index)]).encode()
        return hmac.digest(self._key, label, "sha256")


def clip_factor(norms: Tensor, bound: float) -> Tensor:
    """The factors that scale float64 vectors of these L2 norms to at most `bound`.

    A vector within the bound is unchanged; a longer one ends 2^-24 below it, far more than float64 rounding.
    """
    return torch.where(norms <= bound, 1.0, bound * (1 - 2.0**-24) / norms)


def clipped_rows(vectors: Tensor, bound: float) -> Tensor:
    """Each row of `vectors` [b, d], scaled down to L2 norm `bound` if it is longer."""
    return vectors * clip_factor(torch.linalg.vector_norm(vectors, dim=1, keepdim=True), bound)


def noised(total: Tensor, std: float, rng: Randomness, name: str, *index: int) -> Tensor:
    """`total` plus N(0, std^2) on every coordinate, rounded to the grid; `total` itself if std = 0.

    Args:
        total: float64, the exact sum of clipped vectors.
        rng: its stream (`name`, *index) is drawn; every release needs a separate stream.

    Returns:
        float64, on the device of `total`.
    """
    if std == 0:
        return total
    noise = rng.normal(name, *index, shape=total.shape).to(total.device)
    grid = 2.0 ** (math.ceil(math.log2(std)) - GRID_BITS)
    return noise.mul_(std).add_(total).mul_(1 / grid).round_().mul_(grid)
