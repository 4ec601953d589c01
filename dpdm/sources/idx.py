"""The IDX files of MNIST and of data sets in the same format."""

import gzip
import struct
import zlib
from typing import TYPE_CHECKING, ClassVar

from dpdm.errors import UserError
from dpdm.sources.fetched import FetchedSource

if TYPE_CHECKING:
    import numpy as np

    from dpdm.data import ImageSet

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class IdxSource(FetchedSource):
    """A data set of four gzipped IDX files: 60,000 training and 10,000 test images of 28x28, ten classes."""

    shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    train_size: ClassVar[int] = 60_000

    def published_as(self) -> tuple[str, int | None]:
        return (self.source, 28)

    def load(self) -> "dict[str, ImageSet]":
        import numpy as np

        from dpdm.data import ImageSet

        arrays = {name: parse_idx(content, str(self.folder() / name)) for name, content in self.contents().items()}
        return {
            split: ImageSet(arrays[images][:, None], arrays[labels].astype(np.int64), 10, f"{self.source} {split}")
            for split, (images, labels) in FILES.items()
        }


def parse_idx(content: bytes, origin: str) -> "np.ndarray":
    """A gzipped IDX file of unsigned bytes -> uint8 array of its dimensions; UserError for any other content."""
    import numpy as np

    try:
        raw = gzip.decompress(content)
        zero, kind, rank = struct.unpack(">HBB", raw[:4])
        dims = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise UserError(f"{origin} is corrupt or truncated ({error}); fetch it again") from error
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if zero != 0 or kind != 8 or body.size != int(np.prod(dims, dtype=np.int64)):
        raise UserError(f"{origin} is not an IDX file of unsigned bytes with dimensions {dims}; fetch it again")
    return body.reshape(dims).copy()
