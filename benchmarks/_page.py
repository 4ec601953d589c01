"""Blocks of a document that a script writes, between <!-- name --> and <!-- /name -->."""

import re
from pathlib import Path

import torch


def between(text: str, name: str, content: str) -> str:
    """`text` with the block `name` replaced by `content`."""
    return re.sub(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", lambda m: m[1] + content + m[2], text, flags=re.S)


def write_block(page: Path, name: str, content: str) -> None:
    """Replaces the block in the file, or adds it at the end."""
    text = page.read_text()
    if f"<!-- {name} -->" not in text:
        text += f"\n<!-- {name} --><!-- /{name} -->\n"
    page.write_text(between(text, name, f"\n\n{content.strip()}\n\n"))


def where(threads: int) -> str:
    """Torch's hardware: the name of the GPU, or of the processor with the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "unknown processor"
    return f"{name}, {threads} threads"
