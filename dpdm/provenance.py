"""Which code made an artifact: version, git commit, and a digest of the package's own sources."""

import ast
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import dpdm
from dpdm.artifacts import sha256_of


@cache
def provenance() -> dict[str, str]:
    """Version, commit (with `-dirty` where the tree differs from it; "unknown" outside a checkout), code digest.

    `code` digests the code that results depend on: the sources of the `dpdm` package except its report and its command
    line, without comments and docstrings. So a new baseline or an edit of a table does not change the digest; it cannot
    change the runs of other methods.
    """
    package = Path(__file__).parent
    without = {package / "report", package / "cli", package / "_shipped"}
    sources = sorted(p for p in package.rglob("*.py") if not without & set(p.parents))
    parts = [part for p in sources for part in (str(p.relative_to(package)).encode(), meaning(p))]
    return {"version": dpdm.__version__, "commit": _commit(package.parent), "code": sha256_of(*parts)[:16]}


def meaning(source: Path) -> bytes:
    """A Python file without comments, docstrings and layout."""
    return _text(ast.parse(source.read_bytes())).encode()


def _text(node: Any) -> str:
    """`ast.dump` without empty fields: versions of Python differ in optional fields, which are empty if unused."""
    if isinstance(node, list):
        return f"[{', '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
        node.body[0] = ast.Pass()
    fields = [f"{name}={_text(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({', '.join(fields)})"


def _commit(folder: Path) -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    if (folder / "dpdm" / "_shipped").is_dir():  # installed from a wheel; a checkout around it is not its source
        return "unknown"
    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
