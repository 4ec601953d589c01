"""Named, independent random streams: every use of randomness has a separate one, so none shifts another."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@contextmanager
def default_generator(seed: int) -> Iterator[None]:
    """Inside the block, and nowhere else, torch's global CPU generator is seeded (by the lowest 32 bits of `seed`)."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        yield


class Streams:
    """All randomness of one job, derived from one seed.

    Args:
        seed: non-negative integer; equal seeds give equal streams.
        scope: a name that keeps streams of different purposes apart, such as "train" or "sample".
    """

    def __init__(self, seed: int, scope: str = ""):
        self.seed = seed
        self.scope = scope
        self._image: Callable[[int], int] = lambda i: i  # from a position in a draw to the number of its image

    def _sequence(self, name: str, index: tuple[int, ...]) -> np.random.SeedSequence:
        # A spawn key, since plain entropy ignores trailing zeros: ("x") and ("x", 0) would be one stream.
        digest = hashlib.sha256(f"{self.scope}/{name}".encode()).digest()[:16]
        return np.random.SeedSequence(self.seed, spawn_key=(*np.frombuffer(digest, np.uint32).tolist(), *index))

    def numpy(self, name: str, *index: int) -> np.random.Generator:
        """A NumPy generator for `name` (and, for example, the index of an image)."""
        return np.random.default_rng(self._sequence(name, index))

    def torch(self, name: str, *index: int) -> "torch.Generator":
        """A torch generator on the CPU for `name` (and, for example, the index of a step).

        torch's CPU generator keeps only 32 bits of a seed. Hashed seeds of 100,000 steps would likely collide, and two
        steps would share their noise. So the last index is added to a hash of the rest: seeds of different steps
        differ.
        """
        import torch

        base = int(self._sequence(name, (len(index), *index[:-1])).generate_state(1)[0])
        return torch.Generator().manual_seed((base + sum(index[-1:])) % 2**32)

    @contextmanager
    def torch_default(self, name: str) -> Iterator[None]:
        """Inside the block torch's global CPU generator is this stream, for layers that take no generator."""
        with default_generator(self.integer(name)):
            yield

    def integer(self, name: str, *index: int) -> int:
        """A seed in [0, 2^31) for a library that takes an integer (scikit-learn, torch-fidelity)."""
        return int(self._sequence(name, index).generate_state(1)[0] >> np.uint32(1))

    def of_images(self, scope: str, images: np.ndarray) -> "Streams":
        """New streams within this scope: draw i of `noise_per_image` has the stream of image `images[i]`."""
        streams = Streams(self.seed, f"{self.scope}/{scope}")
        streams._image = lambda i: int(images[i])
        return streams

    def normal_per_image(self, name: str, start: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
        """One draw of `noise_per_image`."""
        return self.noise_per_image(name, start, count, shape)()

    def noise_per_image(self, name: str, start: int, count: int, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
        """A source of standard normal numbers [count, *shape] (float32), new ones at every call.

        Image i has its own stream `start + i`, so that a sample does not depend on its batch (as in EDM's generate.py).
        """
        streams = [self.numpy(name, self._image(start + i)) for i in range(count)]

        def draw() -> np.ndarray:
            out = np.empty((count, *shape), np.float32)
            for image, stream in zip(out, streams, strict=True):
                stream.standard_normal(out=image, dtype=np.float32)
            return out

        return draw
