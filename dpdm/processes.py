"""The processes of one training run: one, or several under torchrun, each with its own device.

Every process runs the same code on the same random streams and holds the same weights; they divide the chunks of a
private batch among themselves and add up the results. Nothing else is divided, so nothing else can differ.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dpdm.errors import UserError


class Processes:
    """This process among those of its run.

    Args:
        rank: 0 .. size - 1; only the first one writes files.
        size: their number; above 1, torch.distributed's default group must be open.
        device: the device of this process.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu"):
        self.rank, self.size, self.device = rank, size, device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def mine(self, number: int) -> bool:
        """Whether this process computes chunk `number` of a batch."""
        return number % self.size == self.rank

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor, in place, by its sum over all processes; the result is bit-equal in all of them."""
        if self.size == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        torch.distributed.all_reduce(flat)
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in at least one process; here all processes wait for each other."""
        if self.size == 1:
            return flag
        count = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(count)
        return bool(count > 0)


def device() -> str:
    """The device of a single process: "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started (by its variables), else this one.

    Raises:
        UserError: only some of torchrun's variables are set, or there are too few GPUs.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield Processes(device=device())
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE = {size} is set in the environment, as torchrun sets it, but not {', '.join(missing)}; unset "
            "WORLD_SIZE, or train in several processes by --processes"
        )
    cuda = torch.cuda.is_available()
    local = int(os.environ["LOCAL_RANK"])
    if cuda and local >= torch.cuda.device_count():
        raise UserError(f"{local + 1} processes or more on {torch.cuda.device_count()} GPUs; ask for fewer processes")
    own = f"cuda:{local}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(torch.distributed.get_rank(), int(size), own)
    finally:
        torch.distributed.destroy_process_group()
