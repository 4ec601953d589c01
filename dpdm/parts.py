"""A part that a line of a registry names as "module:name": it is loaded and called here, and its faults are named."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dpdm.errors import UserError


class Part(NamedTuple):
    """One line of a registry.

    Args:
        file, registry: the file of the registry, and its name there.
        name: the key of the line.
        line: its value, "module:name".
    """

    file: str
    registry: str
    name: str
    line: str

    def __str__(self) -> str:
        return f'{self.file}: {self.registry}["{self.name}"] = "{self.line}"'

    def wrong(self, what: str) -> UserError:
        """The error of this part: `what` is wrong with it, and the fix."""
        return UserError(f"{self}: {what}")

    def load(self) -> Any:
        """The object; UserError if the line names none that can be imported."""
        from dpdm.explain import imported, nearest  # `dpdm --help` reads registries without pydantic

        module, _, attribute = self.line.partition(":")
        if not (module and attribute):
            raise self.wrong("this names no object; write module:name")
        try:
            found = imported(module)
        except UserError as error:
            raise self.wrong(str(error)) from error
        if not hasattr(found, attribute):
            known = [name for name in vars(found) if not name.startswith("_")]
            raise self.wrong(f"{module} has no {attribute}; {nearest(attribute, known)}")
        return getattr(found, attribute)

    def function(self) -> Callable[..., Any]:
        """The object, if it can be called; else UserError."""
        found = self.load()
        if not callable(found):
            raise self.wrong(f"this is of type {type(found).__name__}; name a function")
        return found

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The return value of a function of this part; UserError if it fails."""
        try:
            return function(*arguments)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever its code raises
            raise self.wrong(f"it failed ({_reason(error)}); correct its code") from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
