"""Blocks of a document that a script writes, between <!-- name --> and <!-- /name -->."""

import re
from pathlib import Path


def between(text: str, name: str, content: str) -> str:
    """`text` with the block `name` replaced by `content`."""
    return re.sub(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", lambda m: m[1] + content + m[2], text, flags=re.S)


def write_block(page: Path, name: str, content: str) -> None:
    """Replaces the block in the file, or adds it at the end."""
    text = page.read_text()
    if f"<!-- {name} -->" not in text:
        text += f"\n<!-- {name} --><!-- /{name} -->\n"
    page.write_text(between(text, name, f"\n\n{content.strip()}\n\n"))


def machine() -> str:
    """The processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown processor"
