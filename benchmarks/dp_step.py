"""Seconds and memory of one DP step beside a plain step and beside Opacus' own hooks, interleaved in one process.

    python benchmarks/dp_step.py [--batch 16 --multiplicity 8] [--rounds 5] [--threads 2]

Rows are the same for all: B images x K noise draws through the paper's MNIST network, forward, backward, and
for the private ones clipping, noise and the Adam update. Ratios are per round, so that a machine whose speed
drifts does not bias them; the median is printed.
"""

import argparse
import contextlib
import statistics
import time
import warnings

import torch
from opacus.optimizers import DPOptimizer

from dpdm.diffusion.denoiser import Denoiser, Edm
from dpdm.diffusion.loss import row_losses
from dpdm.diffusion.network import NetworkParams, UNet
from dpdm.privacy.per_example import PerExampleGradients


def build(device: torch.device) -> Denoiser:
    """The paper's MNIST network behind EDM preconditioning."""
    return Denoiser(UNet((1, 28, 28), 10, NetworkParams()), Edm()).to(device)


def losses(module, images, labels, k, autocast):
    """One DPDM loss per row."""
    with autocast:
        return row_losses(
            module, Edm(), images, labels, noise_multiplicity=k, label_dropout=0.1, null_label=10,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip


def plain_step(images, labels, k, device):
    """Forward, backward, Adam."""
    net = build(device)
    optimizer = torch.optim.Adam(net.parameters())

    def step():
        optimizer.zero_grad()
        losses(net, images, labels, k, contextlib.nullcontext()).mean().backward()
        optimizer.step()

    return step


def private_step(images, labels, k, device, engine, autocast):
    """Per-example gradients, clipping, noise, Adam."""
    net = build(device)
    gradients = PerExampleGradients(net, k, engine)
    optimizer = DPOptimizer(
        torch.optim.Adam(net.parameters()), noise_multiplier=1.0, max_grad_norm=1.0,
        expected_batch_size=len(images), loss_reduction="sum",
    )  # fmt: skip

    def step():
        optimizer.zero_grad(set_to_none=True)
        gradients.backward(lambda: losses(gradients.module, images, labels, k, autocast), len(images))
        optimizer.clip_and_accumulate()
        for p in optimizer.params:
            p.grad_sample = None
        optimizer.add_noise()
        optimizer.original_optimizer.step()

    return step


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--multiplicity", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    b, k = args.batch, args.multiplicity
    images = torch.rand(b, 1, 28, 28, device=device) * 2 - 1
    labels = torch.randint(0, 10, (b,), device=device)
    off, bf16 = contextlib.nullcontext(), torch.autocast(device.type, torch.bfloat16)
    steps = {
        "plain fp32": plain_step(images, labels, k, device),
        "ours fp32": private_step(images, labels, k, device, "auto", off),
        "ours bf16": private_step(images, labels, k, device, "auto", bf16),
        "Opacus hooks fp32": private_step(images, labels, k, device, "hooks", off),
    }
    seconds = {name: [] for name in steps}
    for round_ in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {args.threads} threads"
    print(f"B = {b}, K = {k}, {args.rounds} rounds, {where}")
    print(f"{'step':20s} {'median s':>10s} {'x plain':>9s} {'x ours':>9s}")
    for name, values in seconds.items():
        ratios = [
            statistics.median(v / r for v, r in zip(values, seconds[base], strict=True))
            for base in ("plain fp32", "ours fp32")
        ]
        print(f"{name:20s} {statistics.median(values):10.3f} {ratios[0]:9.2f} {ratios[1]:9.2f}")


if __name__ == "__main__":
    main()
