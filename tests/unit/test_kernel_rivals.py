"""The kernel methods: the release's sensitivity, the kernel it stands for, the objectives, a toy they must learn."""

import importlib.util
import itertools
import math

import numpy as np
import pytest
import torch
from refusals import refuses
from torch.nn import functional as F

from baselines import _kernel
from baselines.dp_mepf import DPMEPF, perceptual, squared_distances
from baselines.dp_merf import DPMERF
from baselines.dp_merf import Params as MerfParams
from baselines.pearl import PEARL, frequency_weights, objective
from baselines.pearl import Params as PearlParams
from dpdm import efflite
from dpdm.data import ImageMeta, ImageSet, balanced_labels
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.method import train
from dpdm.networks import BatchSize
from dpdm.privacy import Budget, Ledger, PrivateData, Randomness
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.specs import RunSpec

MERF, PEARL_IMPL = "baselines.dp_merf:DPMERF", "baselines.pearl:PEARL"
TOY = {
    "num_frequencies": 50, "squared_length_scale": 8.0, "generated_batch_size": 20, "steps": 150, "lr_decay_steps": 100,
}  # fmt: skip


def params(**changes) -> MerfParams:
    return MerfParams(**(TOY | changes))


def random_images(n: int, classes: int = 3, seed: int = 0, side: int = 4) -> ImageSet:
    rng = np.random.default_rng(seed)
    return ImageSet(rng.integers(0, 256, (n, 1, side, side), np.uint8), rng.integers(0, classes, n), classes)


def door(images: ImageSet, epsilon: float = math.inf, seed: int = 0) -> PrivateData:
    """A door whose plan is the kernel methods'."""
    budget = Budget(epsilon, 1 / (2 * images.meta.n))
    ledger = Ledger(
        n=images.meta.n, delta=budget.delta, target_epsilon=epsilon, accountant="rdp", coordinates={}, recipe={},
        provenance={},
    )  # fmt: skip
    return PrivateData(
        images, _kernel.plan_releases(params(), images.meta), budget, "rdp", Randomness.repeatable(seed), ledger
    )


def fit(impl: str, images: ImageSet, epsilon: float = math.inf, seed: int = 0, **changes):
    spec = RunSpec(
        study="s", dataset="d", method="m", impl=impl, params=TOY | changes, epsilon=epsilon, delta="1/(2n)",
        allow_large_delta=False, accountant="rdp", seed=seed,
    )  # fmt: skip
    return train(spec, images, Log("test"))


def class_means(model: _kernel.Model, classes: int) -> np.ndarray:
    """Mean of 50 samples of each class, pixels in [0, 1]."""
    labels = balanced_labels(50 * classes, classes)
    out = model.sample(labels, BatchSize(), Streams(0, "sample")) / 255.0
    return np.stack([out[labels == c].mean(0) for c in range(classes)])


# --- features -------------------------------------------------------------------------------------------------


def test_features_have_norm_one():
    pixels = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    frequencies = _kernel.draw_frequencies(params(), ImageMeta(20, (1, 4, 4), 3), Streams(0))
    phi = _kernel.fourier(frequencies)(pixels)
    assert phi.shape == (20, 100)
    torch.testing.assert_close(phi.norm(dim=1), torch.ones(20))


def test_inner_products_of_features_are_the_gaussian_kernel():
    pixels = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = torch.exp(-torch.cdist(pixels.flatten(1), pixels.flatten(1)).square() / (2 * 3.0))
    chosen = params(num_frequencies=50_000, squared_length_scale=3.0)
    phi = _kernel.fourier(_kernel.draw_frequencies(chosen, ImageMeta(6, (1, 4, 4), 3), Streams(0)))(pixels)
    torch.testing.assert_close(phi @ phi.T, wanted, atol=0.02, rtol=0)  # Monte Carlo: std below 1 / sqrt(50,000)
    assert wanted.min() < 0.8  # else a constant would pass


def test_frequencies_come_from_the_seed_alone():
    meta = ImageMeta(6, (1, 4, 4), 3)
    first = _kernel.draw_frequencies(params(), meta, Streams(0, "method"))
    assert torch.equal(first, _kernel.draw_frequencies(params(), meta, Streams(0, "method")))
    assert not torch.equal(first, _kernel.draw_frequencies(params(), meta, Streams(1, "method")))


# --- the release ----------------------------------------------------------------------------------------------


def sums_behind(images: ImageSet, frequencies: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the methods ask the door to sum, caught at the door and summed without clipping; the bounds are 1."""
    private, caught = door(images), {}

    def unclipped(name, statistic, l2_bound):
        assert l2_bound == 1.0
        caught[name] = statistic(*private._batch(np.arange(images.meta.n))).double().sum(0)
        return caught[name]

    private.release_sum = unclipped
    _kernel.release_embeddings(private, _kernel.fourier(frequencies))
    return caught


@pytest.mark.parametrize("seed", range(5))
def test_one_record_moves_each_sum_by_at_most_one_without_any_clipping(seed):
    images = random_images(9, seed=seed)
    frequencies = _kernel.draw_frequencies(params(), images.meta, Streams(seed))
    whole = sums_behind(images, frequencies)
    assert set(whole) == {_kernel.EMBEDDINGS, _kernel.COUNTS}
    for left_out in range(9):
        keep = np.arange(9) != left_out
        less = sums_behind(ImageSet(images.images[keep], images.labels[keep], 3), frequencies)
        for name in whole:
            assert (whole[name] - less[name]).norm() == pytest.approx(1, abs=1e-6)


def test_released_embeddings_are_the_class_means_of_the_features():
    images = random_images(40)
    frequencies = _kernel.draw_frequencies(params(), images.meta, Streams(0))
    means, shares = _kernel.release_embeddings(door(images), _kernel.fourier(frequencies))
    phi = _kernel.fourier(frequencies)(torch.from_numpy(images.images) / 255.0)
    for c in range(3):
        torch.testing.assert_close(means[c], phi[images.labels == c].mean(0), atol=1e-5, rtol=0)
    np.testing.assert_allclose(shares, np.bincount(images.labels) / 40, rtol=1e-6)


def test_the_target_does_not_depend_on_how_unequal_the_classes_are():
    images = random_images(30)
    first = images.labels == 0
    tripled = ImageSet(
        np.concatenate([images.images, *[images.images[first]] * 2]),
        np.concatenate([images.labels, *[images.labels[first]] * 2]),
        3,
    )
    frequencies = _kernel.draw_frequencies(params(), images.meta, Streams(0))
    means, shares = _kernel.release_embeddings(door(images), _kernel.fourier(frequencies))
    unequal, unequal_shares = _kernel.release_embeddings(door(tripled), _kernel.fourier(frequencies))
    torch.testing.assert_close(unequal, means)
    odds, unequal_odds = shares / shares[1], unequal_shares / unequal_shares[1]
    torch.testing.assert_close(unequal_odds, odds * torch.tensor([3.0, 1.0, 1.0]))


def test_a_class_without_records_adds_no_more_noise_than_another():
    """Its target is noise alone, divided by a count of about nothing: the weight must undo that."""
    images = random_images(400, classes=2)
    images = ImageSet(images.images, images.labels, 3)
    frequencies = _kernel.draw_frequencies(params(), images.meta, Streams(0))
    exact, _ = _kernel.release_embeddings(door(images), _kernel.fourier(frequencies))
    noised, shares = _kernel.release_embeddings(door(images, epsilon=1.0), _kernel.fourier(frequencies))
    error = (noised - exact).norm(dim=1)
    assert error[2] > 5 * error[:2].max()
    # The gradient of the objective with respect to a class's own embedding holds the error times the weight.
    assert (error * shares)[2] < 1.5 * (error * shares)[:2].max()


# --- features of a public network -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def public_network():
    if not importlib.util.find_spec(efflite.PACKAGE):
        pytest.skip("the extra efflite is missing")
    return efflite.load()


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 36)])
def test_perceptual_features_have_norm_one_whatever_the_image(public_network, shape, squares):
    pixels = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    pixels[0], pixels[1] = 0, 1
    phi = perceptual(pixels, public_network, squares)
    torch.testing.assert_close(phi.norm(dim=1), torch.ones(4))
    halves = phi.chunk(2, dim=1) if squares else (phi,)
    assert all(half.norm(dim=1).tolist() == pytest.approx([1 / math.sqrt(len(halves))] * 4) for half in halves)


def test_perceptual_features_are_those_of_four_blocks_and_their_squares(public_network):
    pixels = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    blocks = list(public_network.blocks(255 * pixels))
    parts = [blocks[number][1].flatten() for number in (2, 4, 10, 15)]
    first = torch.cat([part / part.norm() for part in parts])
    wanted = torch.cat([first / first.norm(), first**2 / (first**2).norm()]) / math.sqrt(2)
    torch.testing.assert_close(perceptual(pixels, public_network, True)[1], wanted)


def test_a_record_has_the_same_features_in_any_company(public_network):
    """Vectorized as the door shows them, and in a batch."""
    pixels = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one_by_one = torch.func.vmap(lambda image: perceptual(image[None], public_network, True)[0])(pixels)
    torch.testing.assert_close(one_by_one, perceptual(pixels, public_network, True))


@pytest.mark.parametrize("count", [2, 3])
def test_the_squared_distance_has_no_bias_of_few_images(count):
    """Its mean over all draws of `count` of five features equals what their whole mean gives, up to a constant."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(5, 4, generator=generator, dtype=torch.float64))

    def difference(released: torch.Tensor) -> float:
        draws = [features[list(draw)].mean(0, keepdim=True) for draw in itertools.product(range(5), repeat=count)]
        found = torch.cat([squared_distances(means, released[None], torch.tensor([count])) for means in draws]).mean()
        return float(found - (features.mean(0) - released).square().sum() + released.square().sum())

    constants = [difference(torch.randn(4, generator=generator, dtype=torch.float64)) for _ in range(3)]
    assert constants == pytest.approx([1 / (count - 1)] * 3)


@pytest.mark.slow
def test_public_features_lead_each_class_to_its_own_images(public_network, digits_train):
    chosen = np.isin(digits_train.labels, [0, 1])
    images = ImageSet(digits_train.images[chosen], digits_train.labels[chosen], 2)
    model, ledger = fit_mepf(images, steps=100, generated_batch_size=20)
    wanted = np.stack([images.images[images.labels == c].mean(0) for c in (0, 1)]) / 255.0
    found = class_means(model, 2)
    own, other = (np.abs(found - means).mean((1, 2, 3)) for means in (wanted, wanted[::-1]))
    assert (own < 0.7 * other).all()
    assert ledger.public_data == ("imagenet",)


def test_what_public_features_cannot_serve_is_refused(public_network, monkeypatch):
    method, meta = DPMEPF(), ImageMeta(100, (1, 28, 28), 10)
    with refuses("generated_batch_size", 19, 20):
        method.plan(method.Params(generated_batch_size=19), meta)
    with refuses(2, "gray"):
        method.plan(method.Params(), ImageMeta(100, (2, 28, 28), 10))
    monkeypatch.setattr(efflite, "PACKAGE", "no_such_package")
    with refuses("dp_mepf", "pip install"):
        method.plan(method.Params(), meta)


def fit_mepf(images: ImageSet, **changes):
    spec = RunSpec(
        study="s", dataset="d", method="m", impl="baselines.dp_mepf:DPMEPF",
        params={"lr_decay_steps": 100} | changes, epsilon=math.inf, delta="1/(2n)",
        allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip
    return train(spec, images, Log("test"))


# --- objectives -----------------------------------------------------------------------------------------------


def naive_gap(x: np.ndarray, x_labels: np.ndarray, g: np.ndarray, g_labels: np.ndarray, w: np.ndarray) -> float:
    """sum_y (n_y / n) |cf_x - cf_g|^2 at one frequency, by complex exponentials."""
    total = 0.0
    for y in np.unique(x_labels):
        cf_x = np.exp(1j * x[x_labels == y] @ w).mean()
        cf_g = np.exp(1j * g[g_labels == y] @ w).mean()
        total += (x_labels == y).mean() * abs(cf_x - cf_g) ** 2
    return total


@pytest.fixture
def two_sides():
    """Frequencies, the naive gap at each, and ours, for a random data set and a random generated batch."""
    images = random_images(30)
    frequencies = _kernel.draw_frequencies(params(), images.meta, Streams(0))
    released, shares = _kernel.release_embeddings(door(images), _kernel.fourier(frequencies))
    generated = _kernel.Generated(params(), door(images), _kernel.fourier(frequencies), Streams(0))
    seen = {}
    generated.generator.register_forward_hook(lambda module, inputs, output: seen.update(y=inputs[1], g=output))
    ours = _kernel.gaps(released, generated.embeddings(0), shares).detach()
    x = images.images.reshape(30, -1) / 255.0
    g = seen["g"].detach().flatten(1).numpy()
    naive = [naive_gap(x, images.labels, g, seen["y"].numpy(), w) for w in frequencies.numpy().astype(float)]
    return frequencies, np.array(naive), ours


def test_the_gaps_are_those_of_the_characteristic_functions(two_sides):
    _, naive, ours = two_sides
    np.testing.assert_allclose(len(naive) * ours.numpy(), naive, rtol=1e-3, atol=1e-5)


def test_pearls_objective_equals_the_direct_formula(two_sides):
    frequencies, naive, ours = two_sides
    w, s2 = frequencies.numpy().astype(float), 8.0
    theta = np.random.default_rng(0).uniform(2, 14, w.shape[1])
    density_ratio = np.array([math.exp(-0.5 * (row**2 * theta).sum() + 0.5 * (row**2 * s2).sum()) for row in w])
    wanted = (density_ratio * naive).sum() / density_ratio.sum()
    alpha = frequency_weights(torch.from_numpy(theta).float(), frequencies, s2)
    assert objective(ours, alpha).item() == pytest.approx(wanted, rel=1e-3)
    assert wanted != pytest.approx(naive.mean(), rel=0.01)  # the weights matter here


def test_alpha_sums_to_one_and_starts_uniform(two_sides):
    frequencies, _, ours = two_sides
    start = frequency_weights(torch.full((16,), 8.0), frequencies, 8.0)
    torch.testing.assert_close(start, torch.full((50,), 1 / 50))
    assert objective(ours, start).item() == pytest.approx(ours.sum().item(), rel=1e-5)  # DP-MERF's
    moved = frequency_weights(torch.linspace(0, 40, 16), frequencies, 8.0)
    assert moved.sum().item() == pytest.approx(1, abs=1e-5)


def test_a_larger_theta_prefers_lower_frequencies():
    frequencies = torch.tensor([[0.1, 0.0], [2.0, 0.0], [0.0, 2.0]])
    alpha = frequency_weights(torch.tensor([9.0, 8.0]), frequencies, 8.0)  # pixel 0 as if of a longer scale
    assert alpha[0] > alpha[1]
    assert alpha[2] > alpha[1]


def test_the_critic_climbs(monkeypatch):
    """Its steps raise the objective of a generator that stands still, and come at every `critic_every`-th step."""
    seen = []
    monkeypatch.setattr(_kernel.Generated, "descend", lambda self, loss: seen.append(loss.item()))
    still = _kernel.Generated.embeddings
    monkeypatch.setattr(_kernel.Generated, "embeddings", lambda self, step: still(self, 0))
    fit(PEARL_IMPL, random_images(30), steps=9, critic_every=3, critic_lr=0.5)
    moves = np.diff(seen)
    assert np.allclose(moves[[0, 1, 3, 4, 6, 7]], 0, atol=1e-7)
    assert (moves[[2, 5]] > 1e-6).all()


# --- the methods ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_constants() -> ImageSet:
    """Ninety images dark on the left, ten bright there: unequal classes that anything can tell apart."""
    left = np.zeros((1, 8, 8), bool)
    left[..., :4] = True
    labels = np.repeat([0, 1], [90, 10])
    kinds = np.stack([np.where(left, 40, 200), np.where(left, 220, 80)]).astype(np.uint8)
    return ImageSet(kinds[labels], labels, 2)


@pytest.mark.parametrize("impl", [MERF, PEARL_IMPL])
def test_two_constant_classes_are_reproduced_without_noise(two_constants, impl):
    model, _ = fit(impl, two_constants)
    wanted = np.stack([two_constants.images[0], two_constants.images[-1]]) / 255.0
    error = np.abs(class_means(model, 2) - wanted)
    assert error.mean() < 0.05
    untrained, _ = fit(impl, two_constants, steps=1)
    assert np.abs(class_means(untrained, 2) - wanted).mean() > 0.2


@pytest.mark.parametrize("impl", [MERF, PEARL_IMPL])
def test_noise_spoils_what_too_small_a_budget_cannot_carry(two_constants, impl):
    """The target is the noised release: with almost no budget the rare class is lost."""
    model, ledger = fit(impl, two_constants, epsilon=0.01)
    assert all(event.noise_multiplier > 40 for event in ledger.events)
    wanted = two_constants.images[-1] / 255.0
    assert np.abs(class_means(model, 2)[1] - wanted).mean() > 0.15


def test_learning_rate_falls_as_declared():
    images = random_images(10)
    chosen = params(lr=0.1, lr_decay=0.5, lr_decay_steps=2)
    frequencies = _kernel.draw_frequencies(chosen, images.meta, Streams(0))
    generated = _kernel.Generated(chosen, door(images), _kernel.fourier(frequencies), Streams(0))
    rates = []
    for step in range(5):
        rates.append(generated.optimizer.param_groups[0]["lr"])
        generated.descend(generated.embeddings(step).sum())
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


def test_sampling_leaves_the_running_statistics_alone(two_constants):
    model, _ = fit(MERF, two_constants, steps=2)
    before = {name: value.clone() for name, value in model.state()["weights"].items()}
    class_means(model, 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state()["weights"].items())


@pytest.mark.parametrize(("shape", "base"), [((1, 28, 28), 7), ((1, 8, 8), 2), ((3, 32, 24), 8)])
def test_the_generator_has_the_images_shape(shape, base):
    generator = _kernel.Generator(shape, num_classes=10, latent_dim=5, hidden_units=200)
    widths = [layer.out_features for layer in generator.layers if isinstance(layer, torch.nn.Linear)]
    assert widths == [200, 16 * base * shape[2] // 4]
    out = generator(torch.randn(3, 5), torch.tensor([0, 1, 9]))
    assert out.shape == (3, *shape)
    assert ((out >= 0) & (out <= 1)).all()


def test_the_defaults_are_the_published_ones():
    merf, pearl = MerfParams(), PearlParams()
    assert (2 * merf.num_frequencies, merf.squared_length_scale) == (10_000, 105)
    assert (2 * pearl.num_frequencies, pearl.squared_length_scale) == (3_000, 129)
    assert merf.steps * merf.generated_batch_size == pearl.steps * pearl.generated_batch_size == 5 * 60_000
    assert 5 * merf.lr_decay_steps == merf.steps
    assert 5 * pearl.lr_decay_steps == pearl.steps


@pytest.mark.parametrize("method", [DPMERF(), PEARL()])
def test_what_cannot_be_served_is_refused_in_a_sentence(method):
    with refuses("4", "30x28"):
        method.plan(method.Params(), ImageMeta(100, (1, 30, 28), 10))
    with refuses("generated_batch_size", "9"):
        method.plan(method.Params(generated_batch_size=9), ImageMeta(100, (1, 28, 28), 10))
    for bad in ({"squared_length_scale": 0.0}, {"count_share": 1.0}, {"steps": 0}, {"lr_decay": 1.5}, {"epochs": 5}):
        with pytest.raises(UserError, match=next(iter(bad))):
            parse_params(method.Params, bad, "methods.x.params")
