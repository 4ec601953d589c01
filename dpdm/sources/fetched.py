"""Data sets published as files, which are downloaded if there is a network; their checksums are verified."""

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
        """Name -> content of each original file, downloaded if it is missing; UserError if it is not available."""
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
        from dpdm import artifacts

        path, answers = self.folder() / name, []
        for mirror in self.mirrors:
            try:
                content = artifacts.download(mirror + name, self.sha256[name])
            except UserError as error:
                answers.append(f"{mirror}: {error}")
                continue
            return artifacts.write_bytes(path, content)
        raise UserError(
            f"{self.source}: {path} is missing and could not be fetched ({'; '.join(answers)}); put "
            f"{', '.join(self.sha256)} into {self.folder()}, or set {DATA_DIR_VARIABLE} to the folder that holds "
            f"{self.source}/{self.note}"
        )
