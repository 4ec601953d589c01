"""Rows of metrics as the judges write them."""

from typing import Any

LOWER = ("fid", "fd", "kid")  # is better


def measured(metric: str, reference: str = "test", extractor: str | None = None) -> dict[str, Any]:
    """What a row says of its metric, without the value."""
    if extractor is None:
        extractor = "" if metric.startswith("acc") else "inception" if metric == "fid" else "small_cnn"
    direction = "lower" if metric in LOWER else "higher"
    return {"metric": metric, "extractor": extractor, "direction": direction, "reference": reference}
