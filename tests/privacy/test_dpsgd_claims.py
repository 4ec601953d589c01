"""What a DP-SGD step promises, against brute force and statistics."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from refusals import refuses
from torch import nn

from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.privacy import Budget, DpSgdParams, Ledger, PrivateData, PublicRows, Randomness
from dpdm.privacy.accounting import SENSITIVITIES
from dpdm.privacy.dpsgd import add_clipped
from dpdm.rng import Streams


def random_images(n: int, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    return ImageSet(rng.integers(0, 256, (n, 1, 4, 4), np.uint8), rng.integers(0, 3, n).astype(np.int64), 3)


class Net(nn.Module):
    """A convolution, a norm, an embedding and a linear layer: every kind a method here uses."""

    def __init__(self, seed: int = 0):
        super().__init__()
        with Streams(seed).torch_default("net"):
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.GroupNorm(2, 4)
            self.embed = nn.Embedding(3, 4)
            self.out = nn.Linear(4 * 16, 1)

    def forward(self, x, labels):
        h = torch.tanh(self.norm(self.conv(x)) + self.embed(labels)[:, :, None, None])
        return self.out(h.flatten(1))[:, 0]


def door(images: ImageSet, params: DpSgdParams, epsilon: float = math.inf, seed: int = 0) -> PrivateData:
    ledger = Ledger(images.meta.n, 1e-3, epsilon, "rdp")
    plan = [params.mechanism("net", images.meta.n)]
    return PrivateData(images, plan, Budget(epsilon, 1e-3), "rdp", Randomness.repeatable(seed), ledger)


def full_batch(n: int, **changes) -> DpSgdParams:
    """q = 1: every record is in every batch."""
    return DpSgdParams(**{"expected_batch_size": n, "steps": 1, "max_grad_norm": 1.0, **changes})


def squared(net, scale: float = 1.0):
    return lambda images, labels: scale * (net(images, labels) - labels.float()) ** 2


def released_sum(images: ImageSet, params: DpSgdParams, rows: int = 1, scale: float = 1.0) -> torch.Tensor:
    """The noiseless clipped sum of one step, read off a plain SGD step of learning rate 1."""
    net = Net()
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    dp = door(images, params).dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=1.0), params, rows)

    def losses(x, y):
        shift = torch.arange(rows).repeat_interleave(len(y)).float()  # row k of an example differs from row 0
        return scale * (dp.module(x.repeat(rows, 1, 1, 1), y.repeat(rows)) - y.repeat(rows).float() - shift) ** 2

    for step in dp:
        step.update(losses)
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    return (before - after) * params.expected_batch_size


def brute_force(images: ImageSet, max_grad_norm: float, rows: int = 1, scale: float = 1.0) -> torch.Tensor:
    """One backward pass per example: mean over its rows, clip, sum."""
    total = 0.0
    for image, label in zip(images.images, images.labels, strict=True):
        net = Net()
        x = torch.from_numpy(image)[None].float() / 127.5 - 1
        y = torch.tensor([label])
        loss = sum(scale * (net(x, y) - y.float() - k) ** 2 for k in range(rows)) / rows
        loss.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
        total = total + gradient * min(1.0, max_grad_norm / float(gradient.norm()))
    return total


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("max_grad_norm", [0.05, 1e6])
def test_clipped_sum_equals_brute_force(rows, max_grad_norm):
    images = random_images(7)
    ours = released_sum(images, full_batch(7, max_grad_norm=max_grad_norm), rows)
    torch.testing.assert_close(ours, brute_force(images, max_grad_norm, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(rows):
    images = random_images(6)
    without = ImageSet(images.images[1:], images.labels[1:], 3)
    params = full_batch(6, max_grad_norm=0.3)
    all_of_them = released_sum(images, params, rows, scale=100.0)
    # the same expected batch size on one record less: q stays a constant of the mechanism
    fewer = released_sum(without, full_batch(5, max_grad_norm=0.3), rows, scale=100.0)
    distance = float((all_of_them - fewer).norm())
    assert distance <= 0.3 * (1 + 1e-4)
    assert distance > 0.29  # the clip binds, so the bound is tight and the test is not vacuous


@pytest.mark.parametrize("exponent", range(-30, -8))
def test_the_smallest_clip_norm_holds_where_squares_vanish(exponent):
    total, gradient = torch.zeros(200_000, dtype=torch.float64), torch.full((1, 200_000), 10.0**exponent)
    add_clipped(total, [gradient], SENSITIVITIES[0])
    assert total.norm() <= SENSITIVITIES[0]
    small = 10.0**exponent * 200_000**0.5 < SENSITIVITIES[0] / 2
    assert not small or torch.allclose(total, gradient[0].double(), rtol=1e-6, atol=0)


def test_chunks_change_nothing():
    images = random_images(9)
    whole = released_sum(images, full_batch(9), rows=3)
    for chunk in (1, 2, 4):
        parts = released_sum(images, full_batch(9, max_physical_batch_size=chunk), rows=3)
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_without_noise_and_clipping_it_is_the_plain_optimizer():
    images, n, steps = random_images(8), 8, 5
    private, plain = Net(), Net()
    params = full_batch(n, steps=steps, max_grad_norm=1e9)
    dp = door(images, params).dpsgd("net", private, torch.optim.Adam(private.parameters(), lr=0.01), params)
    for step in dp:
        step.update(squared(dp.module))
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    x, y = torch.from_numpy(images.images).float() / 127.5 - 1, torch.from_numpy(images.labels)
    for _ in range(steps):
        optimizer.zero_grad()
        squared(plain)(x, y).mean().backward()
        optimizer.step()
    for ours, theirs in zip(private.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_observed_noise_is_the_declared_noise():
    """The loss is nearly constant, so the update is noise: its std must be z * C / expected batch size."""
    images = random_images(50)
    params = DpSgdParams(expected_batch_size=10, steps=100, max_grad_norm=0.7)
    net = nn.Linear(16, 100)
    nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
    private = door(images, params, epsilon=2.0)
    dp = private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=1.0), params)
    updates, last = [], torch.zeros(1700)
    for step in dp:
        step.update(lambda x, y: dp.module(x.flatten(1)).sum(1) * 1e-9)
        now = torch.cat([p.detach().flatten() for p in net.parameters()])
        updates.append(now - last)
        last = now
    observed = float(torch.stack(updates).std())
    declared = private.ledger.events[0]
    expected = declared.noise_multiplier * declared.sensitivity / 10
    assert declared.noise_multiplier > 0.5
    assert observed == pytest.approx(expected, rel=0.008)  # 170,000 draws: std error 0.17 %
    noise = torch.stack(updates)
    assert abs(float(torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))[0, 1])) < 0.03


def test_poisson_inclusion():
    """Every record independently at rate q: batch sizes vary like a binomial, no record is favoured."""
    n, q, steps = 40, 0.25, 2000
    images = random_images(n)
    params = DpSgdParams(expected_batch_size=10, steps=steps, max_grad_norm=1.0)
    net = Net()
    dp = door(images, params).dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=0.0), params)
    counts, sizes = np.zeros(n), []
    for index in range(steps):
        batch = dp._draw(index)
        assert len(np.unique(batch)) == len(batch)
        counts[batch] += 1
        sizes.append(len(batch))
    rate_error = math.sqrt(q * (1 - q) / steps)
    assert np.abs(counts / steps - q).max() < 4.5 * rate_error
    assert np.mean(sizes) == pytest.approx(n * q, rel=0.02)
    assert np.var(sizes) == pytest.approx(n * q * (1 - q), rel=0.15)  # 0 for fixed-size batches
    dp.close()


def test_empty_batches_are_noised_and_counted(spied):
    images = random_images(20)
    params = DpSgdParams(expected_batch_size=1, steps=30, max_grad_norm=1.0)
    net = Net()
    private = door(images, params, epsilon=1.0)
    dp = private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=1.0), params)
    empty, seen = 0, []
    for step in dp:
        calls = []

        def losses(x, y, calls=calls):
            calls.append(len(y))
            return squared(dp.module)(x, y)

        before = net.out.weight.detach().clone()
        step.update(losses)
        assert not torch.equal(before, net.out.weight)  # noise, batch or not
        empty += not calls
        seen.append(private.ledger.events[0].steps)
    assert empty > 3
    assert seen == list(range(1, 31))


def test_a_step_is_counted_before_its_records_are_seen(spied):
    params, seen = full_batch(20, steps=4), []
    dp = loop_of(Net(), params)

    def losses(x, y):
        seen.append(dp._ledger.events[0].steps)
        return squared(dp.module)(x, y)

    for step in dp:
        step.update(losses)  # first on the random images of the swap test, last on the records
        assert seen[-1] == step.index + 1


def test_the_mean_is_over_the_expected_batch_never_the_drawn_one():
    """Gradient of every example is exactly 1: the update reveals the divisor."""
    images = random_images(30)
    params = DpSgdParams(expected_batch_size=5, steps=20, max_grad_norm=10.0)
    net = nn.Linear(1, 1, bias=False)
    private = door(images, params)
    dp = private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=1.0), params)
    sizes = set()
    for step in dp:
        before = float(net.weight.detach())
        step.update(lambda x, y: dp.module(torch.ones(len(y), 1))[:, 0])
        drawn = (before - float(net.weight.detach())) * 5
        assert drawn == pytest.approx(len(dp._draw(step.index)), abs=1e-4)
        sizes.add(round(drawn))
    assert len(sizes) > 3


def test_stopping_early_spends_less_and_more_steps_are_impossible():
    images = random_images(20)
    params = DpSgdParams(expected_batch_size=5, steps=4, max_grad_norm=1.0)
    net = Net()
    private = door(images, params, epsilon=1.0)
    dp = private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=0.1), params)
    for step in dp:
        step.update(squared(dp.module))
        if step.index == 1:
            break
    assert private.ledger.events[0].steps == 2
    with pytest.raises(RuntimeError, match="only once"):
        step.update(squared(dp.module))
    with pytest.raises(UserError, match="served already"):
        private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=0.1), params)


def one_step(losses_of, net=None, rows: int = 1, optimizer=None):
    images = random_images(6)
    net = net or Net()
    params = full_batch(6)
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1)
    dp = door(images, params).dpsgd("net", net, optimizer, params, rows)
    next(iter(dp)).update(losses_of(dp.module))
    return net


def test_two_forward_passes_in_one_step_are_refused():
    with pytest.raises(RuntimeError, match="one forward pass"):
        one_step(lambda net: lambda x, y: net(x, y) + net(x, y))


def test_a_loss_per_batch_is_refused():
    with pytest.raises(RuntimeError, match="one loss per row"):
        one_step(lambda net: lambda x, y: net(x, y).mean())


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        (lambda net: None, "None"),
        (lambda net: torch.ones(3), "tensor"),
        (lambda net: lambda x, y: net(x, y).to_sparse(), "sparse_coo"),
        (lambda net: lambda x, y: [1.0], "list"),
    ],
)
def test_what_is_no_loss_is_refused_before_the_step_is_counted(losses, found):
    with pytest.raises(UserError, match=rf"^net, step 0: .*{found}"):
        one_step(losses)


def test_another_number_of_rows_is_refused():
    with pytest.raises(UserError, match=r"without the batch's \d rows"):
        one_step(lambda net: lambda x, y: net(x, y), rows=2)


def test_non_finite_loss_leaves_the_parameters_alone():
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    with refuses("net, step 0", "loss"):
        one_step(lambda module: lambda x, y: module(x, y) * math.nan, net)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_non_finite_gradient_leaves_the_parameters_alone():
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    with refuses("gradient"):
        one_step(lambda module: lambda x, y: (module(x, y) * 0).abs().sqrt(), net)  # d sqrt(0) = inf
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_failure_that_a_method_catches_ends_the_run():
    """Whether a step fails can depend on one private image, and nothing hides that."""
    dp = loop_of(Net(), full_batch(20, steps=4))
    steps = iter(dp)

    def losses(x, y):
        losses = squared(dp.module)(x, y)
        return losses / float(len(x) != 20)  # the swap test has other sizes

    with refuses("net, step 0", "loss"):
        next(steps).update(losses)
    with refuses("failed before", "net, step 0"):
        next(steps).update(squared(dp.module))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.SyncBatchNorm(1)])
def test_layers_that_mix_examples_are_refused_by_name(layer):
    class Mixing(Net):
        def __init__(self):
            super().__init__()
            self.mixing = layer

    with refuses("mixing"):
        one_step(lambda net: lambda x, y: net(x, y), Mixing())


def test_the_optimizer_must_hold_all_of_the_module():
    net = Net()
    with refuses("parameters"):
        one_step(lambda m: lambda x, y: m(x, y), net, optimizer=torch.optim.SGD(net.out.parameters(), lr=0.1))


def test_batch_larger_than_the_data_is_refused():
    with refuses("expected_batch_size", "7", "6"):
        full_batch(7).mechanism("net", 6)


def test_module_is_clean_afterwards():
    images = random_images(6)
    net, params = Net(), full_batch(6)
    dp = door(images, params).dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=0.1), params)
    for step in dp:
        step.update(squared(dp.module))
    assert not any(hasattr(p, "grad_sample") or hasattr(p, "summed_grad") for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())


def test_a_second_loop_goes_on_and_never_repeats_a_step():
    """As a GAN's critic loop does. A step done twice would reuse its batch and its noise."""
    images = random_images(20)
    params = DpSgdParams(expected_batch_size=5, steps=5, max_grad_norm=1.0)
    net = Net()
    private = door(images, params, epsilon=1.0)
    dp = private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=0.1), params)
    indices = []
    for _ in range(4):
        for step in itertools.islice(dp, 2):
            step.update(squared(dp.module))
            indices.append(step.index)
    assert indices == [0, 1, 2, 3, 4]
    assert private.ledger.events[0].steps == 5


# --- public rows ------------------------------------------------------------------------------------------------


def public_step(params: DpSgdParams, images: ImageSet, fakes: torch.Tensor, epsilon: float = math.inf, **kwargs):
    """The gradient that one step with public rows hands to the optimizer."""
    net = Net()
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    private = door(images, params, epsilon)
    dp = private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=1.0), params, **kwargs)
    labels = torch.zeros(len(fakes), dtype=torch.long)
    for step in dp:
        step.update(squared(dp.module), PublicRows(squared(dp.module, -3.0), fakes, labels))
    return before - torch.cat([p.detach().flatten() for p in net.parameters()]), private.ledger


def clipped_public_sum(fakes: torch.Tensor, max_grad_norm: float) -> torch.Tensor:
    total = 0.0
    for fake in fakes:
        net = Net()
        squared(net, -3.0)(fake[None], torch.zeros(1, dtype=torch.long)).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
        total = total + gradient * min(1.0, max_grad_norm / float(gradient.norm()))
    return total


@pytest.mark.parametrize("chunk", [2, 512])
def test_public_rows_are_clipped_one_by_one_and_join_the_mean(chunk):
    images, params = random_images(6), full_batch(6, max_physical_batch_size=chunk, max_grad_norm=0.3)
    fakes = torch.rand(5, 1, 4, 4, generator=Streams(1).torch("fakes")) * 2 - 1
    gradient, _ = public_step(params, images, fakes)
    expected = (brute_force(images, 0.3) + clipped_public_sum(fakes, 0.3)) / 11
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_public_rows_get_no_noise_and_cost_nothing():
    images, params = random_images(6), full_batch(6, max_grad_norm=0.3)
    fakes = torch.rand(5, 1, 4, 4) * 2 - 1
    noised, ledger = public_step(params, images, fakes, 1.0)
    others, other_ledger = public_step(params, images, -fakes, 1.0)
    # The noise is the same, being of the same step: only the public sums differ.
    expected = (clipped_public_sum(fakes, 0.3) - clipped_public_sum(-fakes, 0.3)) / 11
    torch.testing.assert_close(noised - others, expected, rtol=1e-3, atol=1e-5)
    assert ledger.to_json() == other_ledger.to_json()
    plain = door(images, params, 1.0)
    net = Net()
    for step in plain.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=1.0), params):
        step.update(squared(net))
    assert plain.ledger.to_json() == ledger.to_json()


def test_the_sensitivity_is_the_clip_norm_with_public_rows_as_well():
    whole, params = random_images(6), full_batch(6, max_grad_norm=0.3)
    less = ImageSet(whole.images[:-1], whole.labels[:-1], 3)
    fakes = torch.rand(5, 1, 4, 4) * 2 - 1
    # The expected batch, not the number of records, is the divisor: public.
    small = DpSgdParams(expected_batch_size=5, steps=1, max_grad_norm=0.3)
    difference = 11 * public_step(params, whole, fakes)[0] - 10 * public_step(small, less, fakes)[0]
    assert 0.29 < float(difference.norm()) <= 0.3 * (1 + 1e-5)


def test_the_number_of_public_rows_must_not_change():
    images, params = random_images(6), full_batch(6, steps=2)
    net = Net()
    dp = door(images, params).dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=1.0), params)
    steps = iter(dp)
    fakes, labels = torch.zeros(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    next(steps).update(squared(dp.module), PublicRows(squared(dp.module), fakes, labels))
    with pytest.raises(RuntimeError, match="2 public rows after 3"):
        next(steps).update(squared(dp.module), PublicRows(squared(dp.module), fakes[:2], labels[:2]))


def test_public_rows_need_one_row_per_example():
    images, params = random_images(6), full_batch(6)
    with refuses("rows_per_example"):
        public_step(params, images, torch.zeros(3, 1, 4, 4), rows_per_example=2)


def test_second_order_losses_through_the_door_draw_their_own_reproducible_randomness():
    images, params = random_images(6), full_batch(6, steps=2, max_grad_norm=0.5, max_physical_batch_size=4)

    def run(seed: int = 0):
        net = Net()
        dp = door(images, params, 1.0, seed).dpsgd(
            "net", net, torch.optim.SGD(net.parameters(), lr=0.1), params, second_order=True
        )

        def losses(x, y):
            x = x + 0.1 * torch.randn_like(x)
            gradient = torch.func.grad(lambda x: dp.module(x, y).sum())(x)
            return (gradient.flatten(1).norm(dim=1) - 1).square()

        state = torch.get_rng_state()
        for step in dp:
            step.update(losses)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(run(), run())
    assert not torch.equal(run(), run(1))


# --- one release per step, and none besides ----------------------------------------------------------------------


def loop_of(net, params: DpSgdParams, n: int = 20, epsilon: float = 1.0, **kwargs):
    private = door(random_images(n), params, epsilon)
    return private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=1.0), params, **kwargs)


@pytest.mark.parametrize("second_order", [False, True])
def test_a_step_kept_from_a_closed_loop_releases_nothing(second_order):
    net = Net()
    dp = loop_of(net, DpSgdParams(expected_batch_size=5, steps=3, max_grad_norm=1.0), second_order=second_order)
    kept = next(iter(dp))
    for step in dp:
        step.update(squared(dp.module))
    before = [p.detach().clone() for p in net.parameters()]
    steps = dp._ledger.events[0].steps
    with pytest.raises(RuntimeError, match="loop is closed"):
        kept.update(squared(dp.module))
    assert dp._ledger.events[0].steps == steps
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_loops_and_steps_cannot_be_copied(copier):
    dp = loop_of(Net(), full_batch(20))
    with refuses("DpSgd"):
        copier(dp)
    with refuses("DpSgdStep"):
        copier(next(iter(dp)))


def test_nothing_new_can_be_kept_on_a_door_a_loop_or_a_step():
    """Nothing looks into them, so the loss there would be a release outside the ledger."""
    params, net = DpSgdParams(expected_batch_size=10, steps=2, max_grad_norm=1.0), Net()
    private = door(random_images(20), params, epsilon=1.0)
    dp = private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=0.1), params)
    for step in dp:
        for holder in (private, dp, step):

            def losses(images, labels, holder=holder):
                holder.seen = squared(net)(images, labels).detach()
                return squared(net)(images, labels)

            with refuses(f"net, step {step.index}", type(holder).__name__, "seen", "outside the ledger"):
                step.update(losses)
        assert dp.declared.steps == 0
        step.update(squared(net))
    dp.released_grad_norm = 0.0  # an attribute that it has


def test_the_released_norm_is_of_the_noised_gradient():
    """What a method may log. The norm before noise, or a loss, would be a release outside the ledger."""
    params = DpSgdParams(expected_batch_size=5, steps=6, max_grad_norm=1.0)
    net = Net()
    dp = loop_of(net, params)
    for step in dp:
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        step.update(squared(dp.module))
        moved = before - torch.cat([p.detach().flatten() for p in net.parameters()])  # a rate of 1
        assert dp.released_grad_norm == pytest.approx(float(moved.norm()), rel=1e-4)
        assert dp.released_grad_norm > 0.5 * dp.declared.noise_multiplier * math.sqrt(len(moved)) / 5


def test_steps_and_mechanisms_share_neither_batch_nor_noise():
    params = DpSgdParams(expected_batch_size=50, steps=5, max_grad_norm=1.0)
    images, names = random_images(100), ("first", "second")
    private = PrivateData(
        images, [params.mechanism(name, 100) for name in names], Budget(1.0, 1e-3), "rdp",
        Randomness.repeatable(0), Ledger(100, 1e-3, 1.0, "rdp"),
    )  # fmt: skip
    batches, noises = [], []
    for name in names:
        net = nn.Linear(16, 30)
        dp = private.dpsgd(name, net, torch.optim.SGD(net.parameters(), lr=1.0), params)
        for step in dp:
            batches.append(dp._draw(step.index))
            before = torch.cat([p.detach().flatten() for p in net.parameters()])
            step.update(lambda x, y, dp=dp: dp.module(x.flatten(1)).sum(1) * 1e-9)
            noises.append(torch.cat([p.detach().flatten() for p in net.parameters()]) - before)
    members = np.stack([np.isin(np.arange(100), batch) for batch in batches])
    for a, b in itertools.combinations(range(10), 2):
        assert abs(np.corrcoef(members[a], members[b])[0, 1]) < 0.45
        assert abs(float(torch.corrcoef(torch.stack([noises[a], noises[b]]))[0, 1])) < 0.25


def test_noise_does_not_follow_from_the_batch():
    """The uniform numbers that choose the records are no part of the noise: else noise would show who was drawn."""
    params = DpSgdParams(expected_batch_size=1000, steps=1, max_grad_norm=1.0)
    dp = loop_of(nn.Linear(1, 1), params, n=2000)
    u = dp._rng.uniform("poisson", 0, count=2000)
    assert np.array_equal(np.flatnonzero(u < 0.5), dp._draw(0))
    noise = dp._rng.normal("noise", 0, shape=(2000,)).numpy()
    for drawn in (u, np.sort(u)):
        assert abs(np.corrcoef(drawn, noise)[0, 1]) < 0.1
        assert abs(np.corrcoef(drawn, noise**2)[0, 1]) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(60_000,), (3, 5000)])
def test_rounding_does_not_widen_the_clip_norm(dtype, shape):
    """One gradient more or less, among 200 alike, moves the float64 sum by at most the clip norm."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn((200, *shape), generator=generator).to(dtype).abs() + 0.1
    totals = []
    for count in (200, 199):
        total = torch.zeros(math.prod(shape), dtype=torch.float64)
        add_clipped(total, [gradients[:count].clone()], 0.7)
        totals.append(total)
    moved = float((totals[0] - totals[1]).norm())
    assert 0.999 * 0.7 < moved <= 0.7
    exact = gradients.double().flatten(1)
    exact = (exact * (0.7 / exact.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0)
    torch.testing.assert_close(totals[0], exact, rtol=2e-4, atol=0)
