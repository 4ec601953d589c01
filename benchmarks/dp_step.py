"""Seconds and memory of one DP step, a plain step, and a step with Opacus' hooks, interleaved in one process.

    python benchmarks/dp_step.py [--batch 16 --multiplicity 8] [--rounds 5] [--threads 2] [--write docs/performance.md]

All steps have the same rows: B images x K noise draws through the paper's MNIST network, forward, backward and Adam,
and in private steps clipping and noise. Ratios are per round, so that a drift of the machine's speed does not bias
them; the median is printed. Peak memory is the additional memory of a step: allocated on a GPU; resident on a CPU,
measured in a separate process per row.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from _page import where, write_block
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

from dpdm.diffusion.denoiser import Denoiser, Edm, Precision
from dpdm.diffusion.loss import row_losses
from dpdm.diffusion.network import NetworkParams, UNet
from dpdm.privacy.per_example import PerExampleGradients


def build(device: torch.device, precision: Precision) -> Denoiser:
    """The paper's MNIST network behind EDM preconditioning."""
    return Denoiser(UNet((1, 28, 28), 10, NetworkParams()), Edm(), precision).to(device)


def losses(module, images, labels, k):
    """One DPDM loss per row."""
    return row_losses(
        module, getattr(module, "_module", module), images, labels, noise_multiplicity=k, label_dropout=0.1,
        null_label=10, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def plain_step(images, labels, k, device, precision):
    """Forward, backward, Adam."""
    net = build(device, precision)
    optimizer = torch.optim.Adam(net.parameters())

    def step():
        optimizer.zero_grad()
        losses(net, images, labels, k).mean().backward()
        optimizer.step()

    return step


def ours(net, images, labels, k):
    """Our per-example gradients: one per example."""
    gradients = PerExampleGradients(net, k)
    return lambda: gradients.backward(lambda x, y: losses(gradients.module, x, y, k), images, labels)


def hooks(net, images, labels, k):
    """Opacus' per-example gradients: one per row, then summed over an example's rows."""
    module = GradSampleModule(net, batch_first=True, loss_reduction="sum")

    def backward():
        (losses(module, images, labels, k).sum() / k).backward()
        for p in net.parameters():
            p.grad_sample = p.grad_sample.view(k, len(images), *p.shape).sum(0)

    return backward


def private_step(images, labels, k, device, precision, engine):
    """Per-example gradients, clipping, noise, Adam."""
    net = build(device, precision)
    backward = engine(net, images, labels, k)
    optimizer = DPOptimizer(
        torch.optim.Adam(net.parameters()), noise_multiplier=1.0, max_grad_norm=1.0,
        expected_batch_size=len(images), loss_reduction="sum",
    )  # fmt: skip

    def step():
        optimizer.zero_grad(set_to_none=True)
        backward()
        optimizer.clip_and_accumulate()
        for p in optimizer.params:
            p.grad_sample = None
        optimizer.add_noise()
        optimizer.original_optimizer.step()

    return step


def steps(args, device: torch.device) -> dict[str, Callable[[], None]]:
    """One ready step per row of the table, built lazily, so that a row uses only the memory that it needs."""
    b, k = args.batch, args.multiplicity
    images = torch.rand(b, 1, 28, 28, device=device) * 2 - 1
    labels = torch.randint(0, 10, (b,), device=device)
    return {
        "plain fp32": lambda: plain_step(images, labels, k, device, "float32"),
        "plain bf16": lambda: plain_step(images, labels, k, device, "bf16"),
        "ours fp32": lambda: private_step(images, labels, k, device, "float32", ours),
        "ours bf16": lambda: private_step(images, labels, k, device, "bf16", ours),
        "Opacus hooks fp32": lambda: private_step(images, labels, k, device, "float32", hooks),
    }


def peak_mib(name: str, make: Callable[[], Callable[[], None]], device: torch.device) -> float:
    """Peak memory of two steps in MiB: on a GPU here, on a CPU in a separate process."""
    if device.type == "cuda":
        step = make()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(), step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    done = subprocess.run([sys.executable, *sys.argv, "--only", name], capture_output=True, text=True, check=True)
    return float(done.stdout)


def own_peak_mib(make: Callable[[], Callable[[], None]]) -> float:
    """Growth of this process' peak resident memory over two steps, in MiB."""
    step = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(), step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--multiplicity", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="a page whose block for this machine and size is replaced")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    makers = steps(args, device)
    if args.only:
        print(own_peak_mib(makers[args.only]))
        return

    memory = {name: peak_mib(name, make, device) for name, make in makers.items()}
    ready = {name: make() for name, make in makers.items()}
    seconds = {name: [] for name in ready}
    for round_ in range(args.rounds + 1):
        for name, step in ready.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)

    lines = [
        f"B = {args.batch}, K = {args.multiplicity}, median of {args.rounds} rounds on {where(args.threads)}",
        f"(torch {torch.__version__}; `python benchmarks/dp_step.py --batch {args.batch} --multiplicity "
        f"{args.multiplicity} --rounds {args.rounds} --threads {args.threads}`):",
        "",
        "| step | seconds | x plain of its precision | x ours fp32 | peak memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, values in seconds.items():
        ratios = [
            statistics.median(v / r for v, r in zip(values, seconds[base], strict=True))
            for base in (f"plain {name.split()[-1]}", "ours fp32")
        ]
        lines.append(
            f"| {name} | {statistics.median(values):.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {memory[name]:.0f} |"
        )
    print("\n".join(lines))
    if args.write:
        kind = "gpu" if device.type == "cuda" else "cpu"
        write_block(args.write, f"dp_step {kind} B={args.batch} K={args.multiplicity}", "\n".join(lines))


if __name__ == "__main__":
    main()
