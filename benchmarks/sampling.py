"""Images per second of every sampler with the paper's MNIST network, untrained: speed does not depend on weights.

python benchmarks/sampling.py [--images 64] [--steps 20] [--threads 2] [--write docs/performance.md]
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _page import where, write_block

from dpdm.diffusion.method import Model, ModelParams, SamplerParams
from dpdm.diffusion.network import UNet
from dpdm.rng import Streams

SAMPLERS = {
    "ddim": {"kind": "ddim"},
    "ddim, guidance 0.25": {"kind": "ddim", "guidance": 0.25},
    "stochastic_ddim": {"kind": "stochastic_ddim"},
    "churn": {"kind": "churn", "s_churn": 100.0, "s_min": 0.05},
}


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="a page whose block for this machine is replaced")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    params = ModelParams()
    model = Model(UNet((1, 28, 28), 10, params.network).to(device), (1, 28, 28), 10, params)
    labels = np.arange(args.images) % 10
    lines = [
        f"{args.images} images, {args.steps} steps, on {where(args.threads)}",
        f"(torch {torch.__version__}; `python benchmarks/sampling.py --images {args.images} --steps {args.steps} "
        f"--threads {args.threads}`):",
        "",
        "| sampler | images/s | network evaluations/s |",
        "| --- | ---: | ---: |",
    ]
    for name, recipe in SAMPLERS.items():
        sampler = SamplerParams.model_validate(recipe | {"num_sampling_steps": args.steps})
        model.sample(labels[:8], sampler, Streams(0))  # warm-up
        start = time.perf_counter()
        model.sample(labels, sampler, Streams(0))
        rate = args.images / (time.perf_counter() - start)
        evaluations = (2 * args.steps - 1 if recipe["kind"] == "churn" else args.steps) * (1 + ("guidance" in recipe))
        lines.append(f"| {name} | {rate:.2f} | {rate * evaluations:.0f} |")
    print("\n".join(lines))
    if args.write:
        write_block(args.write, f"sampling {device.type}", "\n".join(lines))


if __name__ == "__main__":
    main()
