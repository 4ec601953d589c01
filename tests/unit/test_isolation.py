"""The swap test: what mixes the records of a batch is refused before its first step, all else passes untouched."""

import dataclasses
import functools
import math
import random

import numpy as np
import pytest
import torch
from refusals import refuses
from torch import distributions, nn
from torch.nn import functional as F

from dpdm.data import ImageMeta, ImageSet
from dpdm.diffusion.denoiser import Denoiser, Edm
from dpdm.diffusion.loss import row_losses as dpdm_losses
from dpdm.diffusion.network import NetworkParams, UNet
from dpdm.errors import UserError
from dpdm.privacy import Budget, DpSgdParams, Ledger, PrivateData, Randomness, isolation
from dpdm.privacy.isolation import SwapTest
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.rng import Streams

META = ImageMeta(n=50, shape=(1, 4, 4), num_classes=3)


@pytest.fixture(autouse=True)
def all_sizes(monkeypatch):
    monkeypatch.setattr(isolation, "SECONDS", math.inf)


def make(hidden: int = 8, classes: int = 3) -> nn.Module:
    with Streams(0).torch_default("net"):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, hidden), nn.Tanh(), nn.Linear(hidden, classes))


def entropy(net, x, y):
    return F.cross_entropy(net(x), y, reduction="none")


def mixup(net, x, y):
    share = torch.rand(len(x), 1, 1, 1)
    return entropy(net, share * x + (1 - share) * x.flip(0), y)


def in_batch_negatives(net, x, y):
    z = net(x)
    return F.cross_entropy(z @ z.T, torch.arange(len(x)), reduction="none")


def batch_standardised(net, x, y):
    return entropy(net, (x - x.mean(0)) / (x.std(0, unbiased=False) + 1), y)


def class_weights(net, x, y):
    return entropy(net, x, y) / torch.bincount(y, minlength=3).clamp(min=1)[y]


def hard_examples(net, x, y):
    losses = entropy(net, x, y)
    return losses * (losses >= losses.median())


def softmax_weights(net, x, y):
    losses = entropy(net, x, y)
    return losses * torch.softmax(losses.detach(), 0)


def label_of_the_first(net, x, y):
    return entropy(net, x, y[:1].expand(len(y)))


def mean_over_the_batch(net, x, y):
    return entropy(net, x, y) / len(x)


def only_in_large_batches(net, x, y):
    return batch_standardised(net, x, y) if len(x) > 16 else entropy(net, x, y)


def far_from_the_mean(net, x, y):
    losses = entropy(net, x, y)
    return losses * (losses.detach() <= losses.detach().mean() + 3 * losses.detach().std())


def far_below_the_largest(net, x, y):
    return entropy(net, x, y) * (x.abs().amax((1, 2, 3)) >= 1e-3 * x.abs().max())


def capped_by_the_median(net, x, y):
    losses = entropy(net, x, y)
    return torch.minimum(losses, 100 * losses.detach().mean())


def standardised_above_32(net, x, y):
    return batch_standardised(net, x, y) if len(x) > 32 else entropy(net, x, y)


def flipped(net, x, y):
    odd = torch.arange(len(x)) % 2 == 1
    return entropy(net, torch.where(odd.view(-1, 1, 1, 1), x.flip(-1), x), y)


def without_every_second_label(net, x, y):
    return entropy(net, x, torch.where(torch.arange(len(y)) % 2 == 0, 0 * y, y))


def first_tenth(net, x, y):
    return entropy(net, x, torch.where(torch.arange(len(y)) < len(y) // 10, 0 * y, y))


def stratified(net, x, y):
    t = (torch.rand(1) + torch.arange(len(x)) / len(x)) % 1
    return entropy(net, x * t.view(-1, 1, 1, 1), y)


def image_major(net, x, y):
    return entropy(net, x.repeat_interleave(4, 0) + torch.randn(4 * len(x), 1, 4, 4), y.repeat_interleave(4))


def draw_major(net, x, y):
    return entropy(net, x.repeat(4, 1, 1, 1) + torch.randn(4 * len(x), 1, 4, 4), y.repeat(4))


def swap_test(loss, net=None, rows: int = 1, meta: ImageMeta = META, engine: str = "auto", max_size: int = 512):
    net = net or make()
    gradients = PerExampleGradients(net, rows, engine)
    try:
        SwapTest(gradients, meta, max_size).run(lambda x, y: loss(gradients.module, x, y), net)
    finally:
        gradients.close()


MIXING = [mixup, in_batch_negatives, batch_standardised, class_weights, hard_examples, softmax_weights,
          label_of_the_first, mean_over_the_batch, only_in_large_batches, far_from_the_mean, capped_by_the_median,
          standardised_above_32, far_below_the_largest]  # fmt: skip


@pytest.mark.parametrize("loss", MIXING)
def test_a_loss_that_mixes_records_is_refused(loss):
    with pytest.raises(
        UserError,
        match=r"mixes records: the (gradient of .*record.*\d\.(weight|bias)|loss of record \d+ is not finite)",
    ):
        swap_test(loss)


def flipped_by_a_common_draw(net, x, y):
    return flipped(net, x, y) * (1 + torch.rand(()))


def flipped_after_attention(net, x, y):
    rows = x.view(len(x), 1, 4, 4)
    return flipped(net, F.scaled_dot_product_attention(rows, rows, rows), y)


def flipped_after_a_distribution(net, x, y):
    return flipped(net, x + distributions.Normal(0.0, 0.05).sample(x.shape), y)


def dropped_by_place(net, x, y):
    return entropy(net, x, y) * torch.bernoulli((torch.arange(len(x)) % 2 == 0).float())


def without_a_tenth(net, x, y):
    """A fixed number of labels, as some write label dropout."""
    return entropy(net, x, y.index_fill(0, torch.randperm(len(x))[: len(x) // 10], 0))


def without_a_drawn_half(net, x, y):
    chosen = torch.multinomial(torch.ones(len(x)), max(2, len(x) // 2)) if len(x) > 3 else []
    return entropy(net, x, y.index_fill(0, torch.as_tensor(chosen, dtype=torch.long), 0))


PLACED = [
    flipped,
    without_every_second_label,
    first_tenth,
    stratified,
    flipped_by_a_common_draw,
    flipped_after_attention,
    flipped_after_a_distribution,
    dropped_by_place,
    without_a_tenth,
    without_a_drawn_half,
]


@pytest.mark.parametrize("loss", PLACED)
def test_a_loss_that_treats_rows_by_their_place_is_refused(loss):
    """A record that leaves moves the others to another place."""
    with pytest.raises(UserError, match=r"by their place|mixes records"):
        swap_test(loss)


def drawn_labels(net, x, y):
    return entropy(net, x, torch.multinomial(torch.ones(3), len(x), replacement=True))


def dropped(net, x, y):
    return entropy(net, F.dropout(x, 0.3), y)


def without_some(net, x, y):
    return entropy(net, x, y.masked_fill(torch.rand(len(y)) < 0.5, 0))


def of_distributions(net, x, y):
    normal, beta = distributions.Normal(0.0, 0.1), distributions.Beta(0.5, 2.0)
    kind = distributions.Categorical(torch.ones(3)).sample(y.shape)
    rate = distributions.Gamma(2.0, torch.ones(len(x))).sample() + torch.poisson(torch.ones(len(x)))
    return entropy(net, x + normal.sample(x.shape) + beta.sample((len(x), 1, 1, 1)), kind) * rate


def of_their_own_pixels(net, x, y):
    return entropy(net, torch.bernoulli((x + 1).clamp(0, 2) / 2), y)


def with_permuted_pixels(net, x, y):
    return entropy(net, x[..., torch.randperm(4)], y)


def of_two_columns(net, x, y):
    kept = torch.multinomial(torch.ones(len(x), 4), 2)
    columns = torch.zeros(len(x), 4).scatter(1, kept, 1).bool()
    two = x.transpose(1, 3).flatten(2)[columns].view(len(x), 2, 4)  # they are distinct
    return entropy(net, two.repeat(1, 2, 1), y)


SEPARATE = [
    drawn_labels,
    dropped,
    without_some,
    of_distributions,
    of_their_own_pixels,
    with_permuted_pixels,
    of_two_columns,
]


@pytest.mark.parametrize("loss", SEPARATE)
def test_what_a_row_draws_is_not_its_place(loss):
    swap_test(loss)


@pytest.mark.parametrize("rows", [1, 4])
def test_draws_of_rows_in_draw_major_order_pass(rows):
    def loss(net, x, y):
        return of_distributions(net, x.repeat(rows, 1, 1, 1), y.repeat(rows))

    swap_test(loss, rows=rows)


def less_in_large_batches(net, x, y):
    return entropy(net, x, y) * min(1.0, 16 / len(x))


def standardised_by(label):
    def loss(net, x, y):
        of_label = (y == label).view(-1, 1, 1, 1)
        mean = torch.where(of_label, x, 0).sum(0) / of_label.sum().clamp(min=1)
        return entropy(net, torch.where(of_label, x - mean, x), y)

    return loss


QUICK = [without_a_tenth, flipped_after_a_distribution, flipped, less_in_large_batches, standardised_by(2)]


@pytest.mark.parametrize("loss", QUICK)
def test_what_takes_long_is_refused_too(loss, monkeypatch):
    """With a network that is slow, most batches are small."""
    monkeypatch.setattr(isolation, "SECONDS", 0.0)
    with pytest.raises(UserError, match=r"by their place|mixes records"):
        swap_test(loss)


@pytest.mark.parametrize("label", range(5))
def test_a_loss_that_mixes_within_one_class_is_refused(label):
    with pytest.raises(UserError, match="mixes records"):
        swap_test(standardised_by(label), meta=dataclasses.replace(META, num_classes=5), net=make(classes=5))


def test_chunks_of_two_are_tried():
    with pytest.raises(UserError, match="mixes records"):
        swap_test(mixup, max_size=2)


def inked(net, x, y):
    return (x > 0.6).flatten(1).any(1).float() * mixup(net, x, y)


def test_images_that_a_loss_leaves_out_hide_nothing():
    with pytest.raises(UserError, match="mixes records"):
        swap_test(inked)
    with refuses("random images", "zero"):
        swap_test(lambda net, x, y: 0 * entropy(net, x, y))


def test_a_loss_that_refuses_images_without_numbers_is_shown_others():
    def picky(inner):
        def loss(net, x, y):
            if not x.isfinite().all():
                raise ValueError("no image")
            return inner(net, x, y)

        return loss

    swap_test(picky(entropy))
    with pytest.raises(UserError, match=r"mixes records.*10000"):
        swap_test(picky(far_below_the_largest))


def test_a_loss_that_takes_only_pixels_passes():
    swap_test(
        lambda net, x, y: F.cross_entropy(net(x), (1.5 * (x[:, 0, 0, 0] + 1)).long().clamp(max=2), reduction="none")
    )


def test_rows_in_image_major_order_are_refused():
    with pytest.raises(UserError, match=r"mixes records.*draw-major"):
        swap_test(image_major, rows=4)


@pytest.mark.parametrize(("loss", "rows"), [(entropy, 1), (draw_major, 4)])
@pytest.mark.parametrize("engine", ["auto", "vmap"])
def test_a_loss_of_records_on_their_own_passes(loss, rows, engine):
    if engine == "vmap" and rows > 1:
        pytest.skip("the engine shows one record: every order is draw-major")
    swap_test(loss, rows=rows, engine=engine)


def test_a_feature_of_the_whole_minibatch_is_refused():
    class Minibatch(nn.Module):
        """The spread of the batch as one more feature, as in many a discriminator."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(16, 4), nn.Linear(5, 3)

        def forward(self, x):
            h = torch.tanh(self.first(x.flatten(1)))
            return self.last(torch.cat([h, h.std(0, unbiased=False).mean().expand(len(h), 1)], 1))

    with pytest.raises(UserError, match="mixes records"):
        swap_test(entropy, Minibatch())


def test_what_zero_layers_hide_is_found():
    net = make().append(nn.Linear(3, 3))
    for layer in net[3:]:  # one alone would show what it is given by its own gradient
        nn.init.zeros_(layer.weight)

    class Hiding(nn.Module):
        """Records meet in a branch that starts at zero."""

        def __init__(self):
            super().__init__()
            self.plain, self.branch = make(), net

        def forward(self, x):
            return self.plain(x) + self.branch(x - x.nan_to_num().mean(0))  # so that NaN does not show it

    with pytest.raises(UserError, match="mixes records"):
        swap_test(entropy, Hiding())


def test_a_loss_that_draws_elsewhere_or_remembers_is_refused():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(UserError, match=r"remembers records.*generator"):
        swap_test(lambda net, x, y: entropy(net, x + torch.randn(x.shape, generator=generator), y))
    with pytest.raises(UserError, match=r"remembers records or draws.*torch's default generator"):
        swap_test(lambda net, x, y: entropy(net, x * random.random(), y))
    calls = []
    with pytest.raises(UserError, match="keep nothing from one call"):
        swap_test(lambda net, x, y: calls.append(1) or entropy(net, x, y) * len(calls))


@pytest.mark.parametrize("k", [1, 3])
def test_the_diffusion_loss_passes_and_its_image_major_twin_does_not(k):
    net = Denoiser(UNet((1, 4, 4), 3, NetworkParams(channels=8, channel_mult=(1,), attention_resolutions=())), Edm())

    def losses(net, x, y, twist=False):
        """With `twist` the images are repeated one by one, and what follows takes them for draw-major."""
        twisted = x.repeat_interleave(k, 0).view(k, len(x), *x.shape[1:]) if twist else x.expand(k, *x.shape)

        class Images:  # stands for `images` in the loss
            def __len__(self):
                return len(x)

            def repeat(self, *_):
                return twisted.reshape(-1, *x.shape[1:])

        return dpdm_losses(
            net, Denoiser(net, Edm()), Images(), y, noise_multiplicity=k, label_dropout=0.1, null_label=3
        )

    swap_test(losses, net, rows=k)
    if k > 1:
        with pytest.raises(UserError, match="mixes records"):
            swap_test(lambda *a: losses(*a, twist=True), net, rows=k)


@pytest.mark.parametrize("classes", [0, 1])
def test_images_without_labels(classes):
    meta = ImageMeta(n=50, shape=(1, 4, 4), num_classes=classes)
    swap_test(lambda net, x, y: net(x).square().sum(1) + y, meta=meta)
    with pytest.raises(UserError, match="mixes records"):
        swap_test(lambda net, x, y: net(x - x.mean(0)).square().sum(1), meta=meta)


def test_nothing_is_left_behind():
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    swap_test(entropy, net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in net.parameters())


def private_loop(net, max_size: int = 512):
    images = ImageSet(np.zeros((50, 1, 4, 4), np.uint8), np.zeros(50, np.int64), 3)
    params = DpSgdParams(expected_batch_size=20, steps=6, max_grad_norm=1.0, max_physical_batch_size=max_size)
    ledger = Ledger(50, 1e-3, 5.0, "rdp")
    rng = Randomness.repeatable(0)
    private = PrivateData(images, [params.mechanism("net", 50)], Budget(5.0, 1e-3), "rdp", rng, ledger)
    return private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=0.1), params), ledger


def test_the_door_runs_it_before_anything_is_released_or_counted():
    net = make()
    before = [p.detach().clone() for p in net.parameters()]
    dp, ledger = private_loop(net)
    with pytest.raises(UserError, match="net, step 0: the loss mixes records"):
        next(iter(dp)).update(lambda x, y: batch_standardised(dp.module, x, y))
    assert ledger.events[0].steps == 0
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


def test_it_never_sees_a_private_image(monkeypatch):
    dp, _ = private_loop(make())
    shown = []
    monkeypatch.setattr(dp, "_images", lambda indices: shown.append(indices))
    dp._test(lambda x, y: entropy(dp.module, x, y))
    assert not shown


@pytest.mark.parametrize("change", ["mode", "flag", "code", "held"])
def test_it_runs_in_full_when_the_loss_or_the_module_changes(monkeypatch, change):
    net, sizes = make(), []
    tried = isolation._Trials.among_others
    monkeypatch.setattr(isolation._Trials, "among_others", lambda self, *a: sizes.append(a[0]) or tried(self, *a))
    gradients = PerExampleGradients(net)
    test = SwapTest(gradients, META, 8)

    def loss(smooth: bool):
        return lambda x, y: entropy(net, x, y) * (2 if smooth else 1)

    for _ in range(2):  # a new closure of the same code at every step
        test.run(loss(False), net)
    assert sizes == [3, 8]
    if change == "mode":
        net[0].eval()
    elif change == "flag":
        net.lively = True
    test.run((lambda x, y: entropy(net, x, y)) if change == "code" else loss(change == "held"), net, 3)
    assert sizes == [3, 8] * 2


@pytest.mark.parametrize("period", [2, 3, 5, 8, 10, 16, 25, 50, 64, 100, 1000])
def test_what_happens_every_so_many_steps_is_tried(period):
    for offset in (0, period - 1):
        due = [step for step in range(1, 2000) if step % period == offset and isolation.is_due(step)]
        assert due[0] <= 2 * max(period, 50), (period, offset)
    assert sum(map(isolation.is_due, range(10_000))) < 250


def test_another_function_or_mode_outside_is_tried_in_full(monkeypatch):
    net, outside, sizes = make(), nn.Dropout(0.0), []
    tried = isolation._Trials.among_others
    monkeypatch.setattr(isolation._Trials, "among_others", lambda self, *a: sizes.append(a[0]) or tried(self, *a))
    test = SwapTest(PerExampleGradients(net), META, 3)

    def loss(inner):
        return lambda x, y: inner(net, outside(x), y)

    for _ in range(2):
        test.run(loss(entropy), net)
    assert sizes == [3]
    outside.eval()
    test.run(loss(entropy), net, 20)
    assert sizes == [3, 3]
    with pytest.raises(UserError, match="mixes records"):
        test.run(loss(mixup), net, 20)


def test_it_runs_in_brief_at_first_and_round_steps(monkeypatch):
    net, sizes = make(), []
    monkeypatch.setattr(isolation._Trials, "among_others", lambda self, size, end: sizes.append(size))
    monkeypatch.setattr(isolation._Trials, "in_brief", lambda self, size: sizes.append(size))
    test = SwapTest(PerExampleGradients(net), META, 512)
    seen = []
    for step in range(20):
        before = len(sizes)
        test.run(lambda x, y: entropy(net, x, y), net, step)
        if len(sizes) > before:
            seen.append((step, sizes[before:]))
    assert seen == [(0, [3, 8, 32, 512]), *((step, [3]) for step in (*range(1, 12), 15, 16))]


def test_mixup_after_a_warm_up_is_refused():
    dp, ledger = private_loop(make())

    def loss(share):
        return lambda x, y: entropy(dp.module, (1 - share) * x + share * x.flip(0) if share else x, y)

    steps = iter(dp)
    next(steps).update(loss(0.0))
    with pytest.raises(UserError, match="net, step 1: the loss mixes records"):
        next(steps).update(loss(0.5))
    assert ledger.events[0].steps == 1


@pytest.mark.parametrize("max_size", [1, 512])
def test_a_queue_of_earlier_records_is_refused(max_size):
    """Used once it is full, as in contrastive learning with a memory; a chunk may hold one record alone."""
    queue: list[float] = []

    def loss(net, x, y):
        losses = entropy(net, x, y) * (1 + sum(queue[-4:]) if len(queue) >= 4 else 1)
        queue.append(float(x.mean()))
        return losses

    net = make()
    test = SwapTest(PerExampleGradients(net), META, max_size)

    def train():
        for step in range(9):
            test.run(lambda x, y: loss(net, x, y), net, step)

    with pytest.raises(UserError, match=r"remembers records|mixes records"):
        train()


def test_a_loss_that_loses_its_axis_at_one_record_is_found_at_once():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    with pytest.raises(RuntimeError, match="one loss per row"):
        swap_test(lambda net, x, y: net(x).squeeze().square(), net)


def test_a_loss_may_be_any_callable():
    @dataclasses.dataclass
    class Loss:
        """Not hashable."""

        net: nn.Module

        def __call__(self, x, y):
            return entropy(self.net, x, y)

        def of_rows(self, x, y):
            return self(x, y)

    net = make()
    test = SwapTest(PerExampleGradients(net), META, 8)
    for loss in (Loss(net), Loss(net).of_rows, functools.partial(entropy, net)):
        test.run(loss, net)


def test_equal_draws_reach_every_row():
    """What compares a record alone with the same among others: every random function that a loss may use."""
    like = torch.zeros(4, 3)
    kinds = [
        distributions.Normal(0.0, 1.0), distributions.Gamma(2.0, 1.0), distributions.Beta(0.5, 0.5),
        distributions.Dirichlet(torch.ones(3)), distributions.Poisson(3.0), distributions.Bernoulli(0.3),
        distributions.Categorical(torch.ones(5)), distributions.Cauchy(0.0, 1.0), distributions.LogNormal(0.0, 1.0),
        distributions.Geometric(0.3), distributions.Binomial(10, 0.3), distributions.Multinomial(9, torch.ones(4)),
    ]  # fmt: skip

    def draw(n: int) -> list[torch.Tensor]:
        x = like[:n]
        probabilities = torch.ones(n, 5)
        with isolation._SameDraws() as draws, Streams(0).torch_default("x"):
            drawn = [
                torch.rand(n, 3), torch.randn((n, 3)), torch.randn(n), torch.rand(size=(n, 2)),
                torch.randint(9, (n,)), torch.randint(2, 9, (n, 2)), torch.normal(0.0, 1.0, (n, 2)),
                torch.rand_like(x), torch.randn_like(x), torch.bernoulli(x + 0.5), F.dropout(x + 1.0),
                torch.empty(n, 3).uniform_(), torch.empty(n, 3).normal_(), torch.empty(n).exponential_(),
                torch.normal(x, 1.0), torch.normal(0.0, x + 1), torch.normal(x[:, :1], torch.ones(3)),
                torch.poisson(x + 9), torch.binomial(x + 9, x + 0.5), torch.bernoulli(x, 0.5),
                torch.empty(n, 3).bernoulli_(torch.full((3,), 0.5)), torch.multinomial(probabilities, 3),
                torch.multinomial(probabilities, 3, replacement=True), torch.multinomial(torch.ones(5), n, True),
                *(kind.sample((n,)) for kind in kinds), torch.rand(n),
            ]  # fmt: skip
        assert not draws.unequal
        return drawn

    for one, four in zip(draw(1), draw(4), strict=True):
        assert torch.equal(four, one.expand_as(four))


@pytest.mark.parametrize(
    ("max_size", "sizes"), [(1, []), (2, [2]), (3, [3]), (7, [3, 7]), (8, [3, 8]), (512, [3, 8, 32, 512])]
)
def test_the_sizes_are_those_of_chunks(max_size, sizes, monkeypatch):
    tried = []
    monkeypatch.setattr(isolation._Trials, "among_others", lambda self, size, end: tried.append(size))
    swap_test(entropy, max_size=max_size)
    assert tried == sizes


def test_what_takes_long_stops_after_the_smallest_size(monkeypatch):
    tried = []
    original = isolation._Trials.among_others
    monkeypatch.setattr(isolation._Trials, "among_others", lambda self, *a: tried.append(a[0]) or original(self, *a))
    monkeypatch.setattr(isolation, "SECONDS", 0.0)
    swap_test(entropy)
    assert tried == [3]


def test_a_module_outside_that_a_loss_changes_is_refused():
    """Its running mean would be the exact mean of the private images, outside the ledger."""
    net, front = make(), nn.InstanceNorm2d(1, track_running_stats=True)
    gradients = PerExampleGradients(net)
    with refuses("front", "running_mean"):
        SwapTest(gradients, META, 8).run(lambda x, y: entropy(net, front(x), y), net)
    front.eval()
    SwapTest(gradients, META, 8).run(lambda x, y: entropy(net, front(x), y), net)
    gradients.close()
