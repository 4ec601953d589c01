"""Data sets that are published as files: fetched where the network allows, their checksums verified."""

from typing import TYPE_CHECKING, ClassVar

from dpdm.errors import UserError
from dpdm.sources.base import DATA_DIR_VARIABLE, LocalSource

if TYPE_CHECKING:
    from dpdm.data import ImageMeta


class FetchedSource(LocalSource):
    """A data set of ten classes whose original files are known by their SHA-256."""

    shape: ClassVar[tuple[int, int, int]]
    train_size: ClassVar[int]
    sha256: ClassVar[dict[str, str]]  # by file name
    mirrors: ClassVar[tuple[str, ...]]
    note: ClassVar[str] = ""  # ends the sentence that says a file is missing

    def meta(self) -> "ImageMeta":
        from dpdm.data import ImageMeta

        return ImageMeta(self.train_size, self.shape, 10)

    def contents(self) -> dict[str, bytes]:
        """Name -> content of each original file, fetched where it is missing; UserError if it is not to be had."""
        import hashlib

        from dpdm import artifacts

        found = {}
        for name, sha256 in self.sha256.items():
            path = self.folder() / name
            if not path.exists():
                self._fetch(name)
            found[name] = artifacts.read_bytes(path)
            if hashlib.sha256(found[name]).hexdigest() != sha256:
                raise UserError(
                    f"{path} has another SHA-256 than {self.source}'s original; delete it and fetch the original"
                )
        return found

    def _fetch(self, name: str) -> None:
        import hashlib
        import http.client
        import urllib.request

        from dpdm import artifacts

        answer = "no mirror could be reached"
        for mirror in self.mirrors:
            try:
                with urllib.request.urlopen(mirror + name, timeout=20) as response:
                    content = response.read()
            except (OSError, http.client.HTTPException):  # the latter: a transfer that broke off
                continue
            if hashlib.sha256(content).hexdigest() == self.sha256[name]:
                artifacts.write_bytes(self.folder() / name, content)
                return
            answer = f"{mirror} gave another file under that name"
        raise UserError(
            f"{self.source}: {self.folder() / name} is missing and {answer}; put {', '.join(self.sha256)} "
            f"into {self.folder()}, or set {DATA_DIR_VARIABLE} to the folder that holds {self.source}/{self.note}"
        )
