"""Time of Snakemake's plan of a study: a dry run with many seeds, in seconds of wall and processor time.

python benchmarks/dag_scale.py [--study config/paper.yaml] [--seeds 10]

The script fails if the dry run loads torch, which it must not.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, default=ROOT / "config" / "paper.yaml")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    study = yaml.safe_load(args.study.read_text()) | {"seeds": list(range(args.seeds))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        (folder / "torch.py").write_text("raise RuntimeError('a dry run imported torch')")
        command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--snakefile", ROOT / "Snakefile"]
        command += ["--directory", folder, "--configfile", folder / "study.yaml"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((name, str(ROOT)))}
        print(f"{args.study.name} with {args.seeds} seeds:")
        for _ in range(args.rounds):
            start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            seconds = time.perf_counter() - start
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            jobs = int(re.search(r"^total +(\d+)$", done.stdout + done.stderr, re.MULTILINE)[1])
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
            print(f"{jobs} jobs planned in {seconds:.1f} s ({cpu:.1f} s of processor time)")


if __name__ == "__main__":
    main()
