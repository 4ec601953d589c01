"""Which code made an artifact: version, git commit, and a digest of the package's own sources."""

import subprocess
from functools import cache
from pathlib import Path

import dpdm
from dpdm.artifacts import sha256_of


@cache
def provenance() -> dict[str, str]:
    """Version, commit (with `-dirty` where the tree differs from it; "unknown" outside a checkout), code digest.

    `code` digests the sources of the `dpdm` package without its report: adding a baseline, or an edit of a table,
    does not part the runs of the other methods, which that edit cannot have changed.
    """
    package = Path(__file__).parent
    sources = sorted(p for p in package.rglob("*.py") if package / "report" not in p.parents)
    parts = [part for p in sources for part in (str(p.relative_to(package)).encode(), p.read_bytes())]
    return {"version": dpdm.__version__, "commit": _commit(package.parent), "code": sha256_of(*parts)[:16]}


def _commit(folder: Path) -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
