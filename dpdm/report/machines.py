"""How far scores move between machines, by benchmarks/machines.py; a smaller lead does not count."""

import functools

import pandas as pd

from dpdm.layout import MACHINES


@functools.cache
def spreads() -> pd.DataFrame:
    """Per study, method, metric and extractor the largest `difference` of a score by other kernels of the processor and
    other threads, and the largest such difference `relative` to the score.
    """
    return pd.read_csv(MACHINES, keep_default_na=False)


def spread(owner: tuple[str, str], metric: str, extractor: str, value: float) -> float:
    """How far a score may move: accuracies by points, distances in proportion to their value.

    A metric or extractor without measurement gets the largest value of its kind, FID that of FD. An `owner` (study and
    method) without measurement gets the largest value of its study or its method, or else of all.
    """
    accuracy = metric.startswith("acc_")
    kind = spreads()[spreads()["metric"].str.startswith("acc_") == accuracy]
    own = kind[(kind["metric"] == metric) & (kind["extractor"] == extractor)]
    own = kind[kind["metric"] == "fd"] if metric == "fid" and own.empty else own
    found = kind if own.empty else own
    study, method = found["study"] == owner[0], found["method"] == owner[1]
    chosen = next((rows for rows in (found[study & method], found[study | method]) if len(rows)), found)
    return chosen["difference"].max() if accuracy else chosen["relative"].max() * abs(value)
