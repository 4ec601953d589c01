"""CIFAR-10 (Krizhevsky 2009), the binary archive."""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from dpdm.errors import UserError
from dpdm.sources.fetched import FetchedSource

if TYPE_CHECKING:
    from dpdm.data import ImageSet

ARCHIVE = "cifar-10-binary.tar.gz"
BATCHES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}


class Cifar10(FetchedSource):
    """CIFAR-10: `cifar-10-binary.tar.gz` (the python archive is pickled, and not read)."""

    source: Literal["cifar10"] = "cifar10"
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    train_size: ClassVar[int] = 50_000
    sha256: ClassVar[dict[str, str]] = {
        # TensorFlow Datasets' SHA-256 of the file whose MD5 is the authors' c32a1d4ab5d03f1284b67883e8d87530
        ARCHIVE: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    }
    mirrors: ClassVar[tuple[str, ...]] = ("https://www.cs.toronto.edu/~kriz/",)
    note: ClassVar[str] = " (cifar-10-python.tar.gz is not read: it is pickled, and unpickling runs code)"

    def published_as(self) -> tuple[str, int | None]:
        return ("cifar_10", 32)

    def load(self) -> "dict[str, ImageSet]":
        return parse_cifar10(self.contents()[ARCHIVE], str(self.folder() / ARCHIVE))


def parse_cifar10(content: bytes, origin: str) -> "dict[str, ImageSet]":
    """The binary archive -> its splits, in the order of its batches; UserError for any other content.

    A batch holds records of one label byte and 3072 pixel bytes: red, green, blue, each 32x32 row by row.
    """
    import io
    import tarfile

    import numpy as np

    from dpdm.data import ImageSet

    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            batches = {Path(m.name).name: archive.extractfile(m).read() for m in archive if m.isfile()}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{origin} is corrupt or truncated ({error}); fetch it again") from error
    splits = {}
    for split, names in BATCHES.items():
        for name in names:
            if not batches.get(name) or len(batches[name]) % 3073:
                raise UserError(f"{origin} holds no {name} of whole 3073-byte records; fetch it again")
        records = np.frombuffer(b"".join(batches[name] for name in names), np.uint8).reshape(-1, 3073)
        images = records[:, 1:].reshape(-1, 3, 32, 32)
        splits[split] = ImageSet(images, records[:, 0].astype(np.int64), 10, f"{origin} ({split})")
    return splits
