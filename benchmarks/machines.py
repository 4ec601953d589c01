"""How far the numbers of a study move when only the processor's kernels or the threads change.

    python benchmarks/machines.py [config/digits.yaml] [--only "method=dpdm,pearl epsilon=10"]

Runs that part of the study once per setting, each in a folder of a temporary directory. Prints the means over seeds of
the first setting with the largest difference to the others, and adds the largest of them by method and metric to
results/machines.csv. Earlier measurements stay there, since where training is chaotic each finds another difference:
the report makes nothing bold within the largest. ATEN_CPU_CAPABILITY chooses torch's kernels, as another processor
would; more threads add up in another order.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from dpdm.layout import MACHINES
from dpdm.provenance import provenance

SETTINGS = {  # name: environment, options of Snakemake
    "one thread, best kernels": ({}, []),
    "one thread, no vector kernels": ({"ATEN_CPU_CAPABILITY": "default"}, []),
    "two threads, best kernels": ({}, ["--set-threads", "train=2", "sample=2", "score=2"]),
}
KEY = ["method", "epsilon", "metric", "extractor"]


def scores(study: str, only: str, folder: str, environment: dict[str, str], options: list[str]) -> pd.Series:
    """The means over seeds in metrics.csv of one run of that part of the study."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all", "--configfile", study]
    command += ["--config", f"results_dir={folder}", f"only={only}", "anchors=[]", "attacks=False", *options]
    subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    (file,) = Path(folder).glob("*/metrics.csv")
    found = pd.read_csv(file, dtype={"epsilon": str}, keep_default_na=False)
    found = found[found["method"] != "real"]
    return found.assign(value=found["value"].astype(float)).groupby(KEY, sort=False)["value"].mean()


def main() -> None:
    """Prints one row per method, epsilon and metric, and writes one per method and metric."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", nargs="?", default="config/digits.yaml")
    parser.add_argument("--only", default="method=dpdm,dpdm_gauss,pearl,dp_gaussian epsilon=10")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        found = {
            name: scores(args.study, args.only, f"{root}/{number}", *setting)
            for number, (name, setting) in enumerate(SETTINGS.items())
        }
    table = pd.DataFrame(found)
    first = table.iloc[:, 0]
    table["difference"] = table.iloc[:, 1:].sub(first, axis=0).abs().max(axis=1)
    print(table.to_markdown(floatfmt=".4g"))
    table["relative"] = table["difference"] / first.abs()
    cells = table.groupby(["method", "metric", "extractor"], sort=False)
    spread = cells[["difference", "relative"]].max().reset_index()
    study, commit = Path(args.study).stem, provenance()["commit"]
    spread["study"], spread["only"], spread["commit"] = study, args.only, commit
    known = pd.read_csv(MACHINES, keep_default_na=False)
    spread = pd.concat([known[(known["study"] != study) | (known["commit"] != commit)], spread])
    spread.to_csv(MACHINES, index=False, float_format="%.4g", lineterminator="\n")
    print(f"wrote {MACHINES}")


if __name__ == "__main__":
    main()
