"""How far the numbers of a study move if only the processor's kernels or the threads change.

    python benchmarks/machines.py [config/digits.yaml] [--only "method=dpdm,pearl epsilon=10"]
    python benchmarks/machines.py --between OLD/metrics.csv NEW/metrics.csv

The first command runs that part of the study once per setting, each in a temporary folder. ATEN_CPU_CAPABILITY selects
torch's kernels, as another processor would; more threads add up in another order. The second command compares the
scores of two machines for the same runs. Both print the means over seeds with the largest difference from the first,
and add the largest difference by method and metric to results/machines.csv. Earlier measurements stay there: if
training is chaotic, each measurement finds another difference, and the report makes no lead bold that is within the
largest.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dpdm.layout import MACHINES
from dpdm.provenance import provenance
from dpdm.report.collect import METRICS, read_csv

SETTINGS = {  # name: environment, options of Snakemake
    "one thread, best kernels": ({}, []),
    "one thread, no vector kernels": ({"ATEN_CPU_CAPABILITY": "default"}, []),
    "two threads, best kernels": ({}, ["--set-threads", "train=2", "sample=2", "score=2"]),
}
KEY = ["method", "sampler", "epsilon", "metric", "extractor", "reference"]


def scores(study: str, only: str, folder: str, environment: dict[str, str], options: list[str]) -> pd.DataFrame:
    """metrics.csv of one run of that part of the study."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all", "--configfile", study]
    command += ["--config", f"results_dir={folder}", f"only={only}", "anchors=[]", "attacks=False", *options]
    subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    (file,) = Path(folder).glob("*/metrics.csv")
    return read_csv(file, METRICS)


def means(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The means over the common seeds of all frames, a column per frame; without anchors."""
    runs = [frame[frame["epsilon"] != ""].set_index([*KEY, "seed"])["value"] for frame in frames.values()]
    return pd.concat(runs, axis=1, keys=frames, join="inner").groupby(KEY, sort=False).mean()


def main() -> None:
    """Prints one row per method, epsilon and metric, and writes one per method and metric."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", nargs="?", default="config/digits.yaml")
    parser.add_argument("--only", default="method=dpdm,dpdm_gauss,pearl,dp_gaussian epsilon=10")
    parser.add_argument("--between", nargs=2, metavar="METRICS", help="two metrics.csv of a study, by two machines")
    args = parser.parse_args()
    if args.between:
        frames = {file: read_csv(file, METRICS) for file in args.between}
        (study,) = frames[args.between[1]]["study"].unique()
        what = "the same runs on two processors"
    else:
        study, what = Path(args.study).stem, args.only
        with tempfile.TemporaryDirectory() as root:
            frames = {
                name: scores(args.study, args.only, f"{root}/{number}", *setting)
                for number, (name, setting) in enumerate(SETTINGS.items())
            }
    table = means(frames)
    first = table.iloc[:, 0]
    table["difference"] = table.iloc[:, 1:].sub(first, axis=0).abs().max(axis=1)
    print(table.to_markdown(floatfmt=".4g"))
    table["relative"] = (table["difference"] / first.abs()).fillna(0.0)  # 0 / 0: a precision of 0 that stays 0
    cells = table.groupby(["method", "metric", "extractor"], sort=False)
    spread = cells[["difference", "relative"]].max().reset_index()
    spread["study"], spread["only"], spread["commit"] = study, what, provenance()["commit"]
    known = pd.read_csv(MACHINES, keep_default_na=False)
    same = (known[["study", "only", "commit"]] == spread[["study", "only", "commit"]].iloc[0]).all(axis=1)
    spread = pd.concat([known[~same], spread])
    spread.to_csv(MACHINES, index=False, float_format="%.4g", lineterminator="\n")
    print(f"wrote {MACHINES}")


if __name__ == "__main__":
    main()
