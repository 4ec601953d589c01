"""How far scores move from machine to machine, as benchmarks/machines.py measured it: a smaller lead is none."""

import functools

import pandas as pd

from dpdm.layout import MACHINES


@functools.cache
def spreads() -> pd.DataFrame:
    """Per metric and extractor the largest `difference`, and that `relative` to the value, between the scores of the
    same study by other kernels of the processor and other threads.
    """
    return pd.read_csv(MACHINES, keep_default_na=False)


def spread(metric: str, extractor: str, value: float) -> float:
    """By how much a score may move: accuracies by points, distances in proportion to their value.

    A metric or extractor that was not measured moves as much as the worst of its kind.
    """
    accuracy = metric.startswith("acc_")
    kind = spreads()[spreads()["metric"].str.startswith("acc_") == accuracy]
    own = kind[(kind["metric"] == metric) & (kind["extractor"] == extractor)]
    chosen = kind if own.empty else own
    return chosen["difference"].max() if accuracy else chosen["relative"].max() * abs(value)


def note() -> str:
    """What readers of a table of results have to know of it, in one sentence."""
    found = spreads().groupby(spreads()["metric"].str.partition("_")[0])[["difference", "relative"]].max()
    studies = ", ".join(spreads()["study"].unique())
    return (
        f"Another processor gives other scores: in {studies}, accuracies moved by up to "
        f"{found.loc['acc', 'difference']:.1f} points and an FD by up to {100 * found.loc['fd', 'relative']:.0f} % "
        "(results/machines.csv)."
    )
