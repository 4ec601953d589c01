"""The door: the only holder of training images. Everything that it releases is noised and in the ledger."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpdm.checkpoint import Checkpoint
from dpdm.data import ImageMeta, ImageSet, to_network
from dpdm.errors import UserError
from dpdm.privacy.accounting import Budget, Mechanism, calibrate
from dpdm.privacy.block import BlockGradients, PoissonBlocks, Prepare, ShardBlocks
from dpdm.privacy.dpsgd import DpSgd, DpSgdParams
from dpdm.privacy.isolation import random_records, set_apart
from dpdm.privacy.ledger import Ledger
from dpdm.privacy.loop import Served, Stateful
from dpdm.privacy.noise import NoCopy, Randomness, clip_factor, noised
from dpdm.privacy.traces import dark_and_bright, without_traces
from dpdm.processes import Processes
from dpdm.progress import Log

RELEASE_CHUNK = 512  # records per chunk of a one-shot release: memory only

Statistic = Callable[[Tensor, Tensor], Tensor]


class PrivateData(NoCopy):
    """Training images behind a privacy budget.

    A method announces its mechanisms as a plan. The door sets the noise of mechanisms with a share, finds the noise
    scale of the rest at which the whole plan meets the budget, and then serves each planned mechanism exactly once, by
    name. Only the callbacks given to a mechanism see images. This is a capability, not a sandbox: it makes a review
    short.

    Args:
        images: the training split.
        plan: every mechanism that the method uses.
        budget: target epsilon and delta.
        accountant: "rdp", "prv" or "pld", for the calibration.
        rng: the streams of sampling and DP noise.
        ledger: where releases are written; must be empty.
        processes: DP-SGD divides its batches among them, each on its device; other mechanisms do all their work in
            every process.
        checkpoint: where long mechanisms save their state, and from which they continue.
    """

    def __init__(
        self,
        images: ImageSet,
        plan: Sequence[Mechanism],
        budget: Budget,
        accountant: str,
        rng: Randomness,
        ledger: Ledger,
        processes: Processes | None = None,
        checkpoint: Checkpoint | None = None,
    ):
        if ledger.events:
            raise UserError("a new door needs an empty ledger")
        if not images.meta.n:
            raise UserError(f"{images.origin} holds no images")
        self.meta = images.meta
        self.budget = budget
        self.ledger = ledger
        self._processes = processes or Processes()
        self.device = torch.device(self._processes.device)
        self._images = images
        self._rng = rng
        self._checkpoint = checkpoint or Checkpoint(None, "", Log())
        self._plan = {mechanism.name: mechanism for mechanism in plan}
        self._noise_scale = calibrate(plan, budget, accountant)
        self._served: set[str] = set()

    def noise_multiplier(self, name: str) -> float:
        """The noise multiplier of the planned mechanism `name`: public, so a method may adapt to it."""
        return self._planned(name).noise_at(self._noise_scale)

    def release_sum(self, name: str, statistic: Statistic, l2_bound: float) -> Tensor:
        """A noised sum over all records of a per-record vector clipped to L2 norm `l2_bound`.

        Args:
            name: a planned Gaussian mechanism.
            statistic: maps images (float in [-1, 1], [1, C, H, W]) and labels (int64, [1]) to [1, ...], of any real
                dtype. It sees one record at a time, vectorized by `torch.func.vmap` if possible, so code for batches
                sees batches of one. Its draws (from torch's default generator) are independent per record.
            l2_bound: the sensitivity, as planned; the door clips each record's vector to it.

        Returns:
            float64 tensor of the statistic's shape without its first axis, plus N(0, (z * l2_bound)^2).

        Raises:
            UserError: the mechanism is not planned with this bound, or was already served; or the statistic fails, is
                not finite, or is not one vector per record.
        """
        return self._release(name, l2_bound, statistic, l2_bound, _sum)

    def release_second_moment(self, name: str, vectors: Statistic, l2_bound: float) -> Tensor:
        """A noised sum over all records of v v^T, for a per-record vector v clipped to L2 norm `l2_bound`.

        The same mechanism as `release_sum` of the statistic v v^T, whose Frobenius norm is at most l2_bound^2, but
        computed by one matrix product. With vectors [b, g, d], a record gives g blocks, and their concatenation v is
        clipped: sqrt(sum_g |v_g|^4) <= sum_g |v_g|^2 <= l2_bound^2 bounds them jointly.

        Args:
            name: a planned Gaussian mechanism.
            vectors: maps one record, as for `release_sum`, to [1, d] or [1, g, d].
            l2_bound: of a record's vector; the sensitivity is its square.

        Returns:
            float64 [d, d] or [g, d, d], symmetric. The noise has std z * l2_bound^2 on the diagonal, and 1 / sqrt(2) of
            that off the diagonal (independent noise on all entries, then symmetrized: post-processing).
        """
        moment = self._release(name, l2_bound**2, vectors, l2_bound, _second_moment)
        return (moment + moment.mT) / 2

    def dpsgd(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        params: DpSgdParams,
        rows_per_example: int = 1,
        second_order: bool = False,
        keep: Sequence[Stateful] = (),
    ) -> DpSgd:
        """Private training of `module` by `optimizer`; see DpSgd for the loop.

        Args:
            name: a planned Poisson-subsampled Gaussian mechanism.
            rows_per_example: rows of the forward batch that belong to one example.
            second_order: the loss itself differentiates through the module (`torch.func.grad` of `DpSgd.module`, as a
                gradient penalty does). The loss then sees one example at a time, vectorized, and may call the module
                several times.
            keep: everything else that the loop changes (an average, a generator, its optimizer). It is saved in
                checkpoints with module and optimizer, so that a killed run continues as if it had not been killed.

        Raises:
            UserError: not planned with exactly these parameters, served already, or a layer mixes examples.
        """
        served = self._serve_loop(params.mechanism(name, self.meta.n), (module, optimizer, *keep))
        return DpSgd(served, module, optimizer, params, rows_per_example, second_order, self._processes)

    def block_gradients(
        self,
        name: str,
        params: PoissonBlocks | ShardBlocks,
        prepare: Prepare | None = None,
        keep: Sequence[Stateful] = (),
    ) -> BlockGradients:
        """Noised gradients at generated images; see BlockGradients for the loop.

        Args:
            name: a mechanism planned as `params.mechanism(name, n)`.
            prepare: with shards, maps a shard's images, labels and number to a state (such as a trained critic); every
                step on that shard gets a copy. Called once per shard, when it is first drawn. The state must depend on
                nothing else that changes.
            keep: everything that the loop changes (a generator, its optimizer); saved in checkpoints.

        Raises:
            UserError: not planned with exactly these parameters, or served already.
        """
        return BlockGradients(self._serve_loop(params.mechanism(name, self.meta.n), keep), params, prepare)

    def public_steps(self, name: str, count: int, keep: Sequence[Stateful] = ()) -> Iterator[int]:
        """The numbers 0, 1, ..., count - 1 of a loop that sees no record, such as training on releases.

        A killed run continues the loop from its last checkpoint; `keep` is everything that the loop changes.
        """
        if name in self._plan:
            raise UserError(f"{name!r} is a mechanism of the plan; give the loop without records another name")
        saved = self._checkpoint.restore(name)
        reached = 0 if saved is None else saved["next"]
        if saved is not None:
            for item, found in zip(keep, saved["stateful"], strict=True):
                item.load_state_dict(found)
            self._checkpoint.say(f"{name}: resumed at step {reached} of {count}")

        def state() -> dict[str, Any]:
            return {"next": reached, "stateful": [item.state_dict() for item in keep]}

        with self._checkpoint.on_signal():
            while reached < count:
                reached += 1
                yield reached - 1
                self._checkpoint.step_done(name, state)
        self._checkpoint.finish(name, state)

    def _serve_loop(self, asked: Mechanism, stateful: Sequence[Stateful]) -> Served:
        mechanism = self._serve(asked.name, asked.mechanism, asked.sensitivity)
        if (asked.sample_rate, asked.steps) != (mechanism.sample_rate, mechanism.steps):
            raise UserError(
                f"mechanism {asked.name!r} is asked for with q = {asked.sample_rate:g}, steps = {asked.steps}, but "
                f"planned with q = {mechanism.sample_rate:g}, steps = {mechanism.steps}; give the plan the same params"
            )
        event = self.ledger.append(mechanism.event(self._noise_scale, steps=0))
        rng, meta = self._rng.scoped(asked.name), self.meta
        return Served(asked.name, self._batch, meta, self.ledger, event, rng, self._checkpoint, tuple(stateful))

    def _planned(self, name: str) -> Mechanism:
        if name not in self._plan:
            raise UserError(f"mechanism {name!r} is not in the plan: {', '.join(self._plan) or 'it is empty'}")
        return self._plan[name]

    def _serve(self, name: str, kind: str, sensitivity: float) -> Mechanism:
        self.ledger.refuse_failed()
        mechanism = self._planned(name)
        if mechanism.mechanism != kind:
            raise UserError(f"mechanism {name!r} was planned as {mechanism.mechanism}, not {kind}")
        if name in self._served:
            raise UserError(f"mechanism {name!r} was served already; plan one more to release twice")
        self._served.add(name)
        if sensitivity != mechanism.sensitivity:
            raise UserError(
                f"mechanism {name!r} was planned with sensitivity {mechanism.sensitivity:g}, but is asked for with "
                f"{sensitivity:g}; give the plan the same bound"
            )
        return mechanism

    def _batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        images = to_network(self._images.images[indices]).to(self.device)
        return images, torch.from_numpy(self._images.labels[indices]).to(self.device)

    def _release(
        self,
        name: str,
        sensitivity: float,
        statistic: Statistic,
        l2_bound: float,
        reduce: Callable[[Tensor], Tensor],
    ) -> Tensor:
        event = self._serve(name, "gaussian", sensitivity).event(self._noise_scale)
        self.ledger.append(event)  # before anything is released
        saved = self._checkpoint.restore(name, loop=False)  # a killed run neither computes nor releases it again
        if saved is None:
            rng = self._rng.scoped(name)
            with self.ledger.no_failure(name):
                total = self._clipped_total(name, statistic, l2_bound, reduce, rng)
            released = noised(total, event.noise_multiplier * event.sensitivity, rng, "noise")
            saved = {"event": asdict(event), "released": released}
        if saved["event"] != asdict(event):
            raise UserError(f"{self._checkpoint.path} spent the budget of {name!r} otherwise than this run; delete it")
        self._checkpoint.finish(name, lambda: saved)
        return saved["released"]

    def _clipped_total(
        self, name: str, statistic: Statistic, l2_bound: float, reduce: Callable[[Tensor], Tensor], rng: Randomness
    ) -> Tensor:
        """The sum (float64) of reduce(clipped vectors) over all chunks; every record is in exactly one.

        Not a release. A record changes the sum by at most the sensitivity, including rounding.
        """
        records = _PerRecord(name, statistic, rng)
        shape = _PerRecord(name, statistic, Randomness.repeatable(0)).rehearse(self.meta, self.device)
        total = torch.zeros((), dtype=torch.float64)
        count = len(self._images.labels)
        for start in range(0, count, RELEASE_CHUNK):
            images, labels = self._batch(np.arange(start, min(start + RELEASE_CHUNK, count)))
            v = records.vectors(images, labels, start)
            if v.shape[1:] != shape:
                raise UserError(
                    f"{name}: a statistic must have one shape for all records, got {tuple(shape)} and "
                    f"{tuple(v.shape[1:])}; give it a fixed number of classes"
                )
            norms = torch.linalg.vector_norm(v.reshape(len(v), -1), dim=1)
            if not torch.isfinite(norms).all():
                raise UserError(f"{name}: a statistic is not finite; check it on an image that is black all over")
            total = total + reduce(v * clip_factor(norms, l2_bound).view(-1, *[1] * (v.ndim - 1))).cpu()
        return total


class _PerRecord:
    """Calls a statistic on one record at a time: vectorized, or in a loop where torch.func.vmap fails."""

    def __init__(self, name: str, statistic: Statistic, rng: Randomness):
        self._name, self._statistic, self._rng = name, statistic, rng
        self._vectorized = True

    def rehearse(self, meta: ImageMeta, device: torch.device) -> torch.Size:
        """Calls the statistic on random records, and on the first again; returns the shape of its result.

        Raises:
            UserError: the statistic remembers records: its result changes, or something that it can reach.
        """
        images, labels = random_records(2, meta, "statistic", device)
        set_apart(labels, meta)
        images, labels = torch.cat([images, *dark_and_bright(images[:1])]), labels[[0, 1, 0, 0]]
        try:
            first, *_, again = without_traces(
                lambda i: self._in_a_loop(images[i : i + 1], labels[i : i + 1], 0),
                self._statistic,
                records=(0, 1, 2, 3, 0),
            )
        except UserError as error:
            raise UserError(f"{self._name}: {error}") from error
        if not (first.shape == again.shape and torch.equal(first.nan_to_num(), again.nan_to_num())):
            raise UserError(
                f"{self._name}: its statistic remembers records: called again with the same random record, it gives "
                "another result; let it keep nothing from one call to the next"
            )
        return first.shape[1:]

    def vectors(self, images: Tensor, labels: Tensor, start: int) -> Tensor:
        """float64 [b, ...]: the statistic of each record; `start` is the number of the first record."""
        if self._vectorized:
            try:
                with self._rng.torch_default("draws", start):
                    return torch.func.vmap(self._of_one, randomness="different")(images, labels)
            except UserError:
                raise
            except Exception as error:  # whatever vmap cannot express; errors of the statistic appear again below
                self._vectorized = False
                reason = str(error).partition("\n")[0]
                warnings.warn(f"{self._name}: its statistic runs record by record, slowly: {reason}", stacklevel=2)
        return self._in_a_loop(images, labels, start)

    def _in_a_loop(self, images: Tensor, labels: Tensor, start: int) -> Tensor:
        try:
            found = []
            for number, (image, label) in enumerate(zip(images, labels, strict=True), start):
                with self._rng.torch_default("draws of one", number):
                    found.append(self._of_one(image, label))
            return torch.stack(found)
        except UserError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{self._name}: its statistic failed: {type(error).__name__}: {reason}") from error

    def _of_one(self, image: Tensor, label: Tensor) -> Tensor:
        v = self._statistic(image[None], label[None])
        if not isinstance(v, Tensor) or v.layout != torch.strided or v.is_complex() or v.ndim < 1 or len(v) != 1:
            got = f"{v.dtype} {tuple(v.shape)}, {v.layout}" if isinstance(v, Tensor) else type(v).__name__
            raise UserError(
                f"{self._name}: a statistic must give one vector per record, dense, real, [1, ...], got {got}"
            )
        return v[0].detach().double().clone()  # the statistic may return a buffer that every call overwrites


def _sum(vectors: Tensor) -> Tensor:
    return vectors.sum(0)


def _second_moment(vectors: Tensor) -> Tensor:
    if vectors.ndim not in (2, 3):
        raise UserError(f"a second moment needs [1, d] or [1, g, d] per record, got {(1, *vectors.shape[1:])}")
    return torch.einsum("b...d,b...e->...de", vectors, vectors)
