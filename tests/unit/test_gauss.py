"""DPDM around a mixture: EDM where it is isotropic, its exact denoiser elsewhere, and its draws at step 0."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from refusals import refuses

from dpdm import artifacts
from dpdm.data import ImageMeta, ImageSet, from_unit
from dpdm.diffusion.denoiser import SIGMA_DATA, Denoiser, Edm
from dpdm.diffusion.gauss import GaussDenoiser, GaussUNet, Model, Prior
from dpdm.diffusion.method import ModelParams, SamplerParams
from dpdm.diffusion.network import NetworkParams
from dpdm.errors import UserError
from dpdm.method import prepare_run, train
from dpdm.mixture import Mixture
from dpdm.privacy import epsilon_spent
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.specs import RunSpec

SMALL = NetworkParams(channels=8, channel_mult=(1,), blocks_per_level=1, attention_resolutions=())
D, K, CLASSES = 16, 5, 3
BOUNDS = {"max_image_norm": 4.0, "max_centered_norm": 3.0, "max_component_norm": 2.0}


def orthonormal(*size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(*size, generator=torch.Generator().manual_seed(sum(size))))[0]


def mixture(components: int = 1) -> Mixture:
    g = torch.Generator().manual_seed(components)
    return Mixture(
        class_weights=torch.tensor([0.5, 0.3, 0.2]),
        weights=torch.softmax(torch.randn(CLASSES, components, generator=g), 1),
        means=torch.rand(CLASSES, D, generator=g),
        offsets=torch.randn(CLASSES, components, K, generator=g) * (0.3 if components > 1 else 0.0),
        basis=orthonormal(D, K),
        vectors=orthonormal(CLASSES, K, K),
        variances=torch.rand(CLASSES, K, generator=g) * 0.05 + 0.001,
        residual=torch.tensor(0.002),
    )


def drawn_in_full(made: Mixture, labels: np.ndarray, seed: int) -> torch.Tensor:
    """Draws with the noise outside the basis, which the mixture itself leaves out."""
    outside = torch.randn(len(labels), D, generator=torch.Generator().manual_seed(seed)) * made.residual.sqrt()
    return made.draw(labels, Streams(seed)) + outside - outside @ made.basis @ made.basis.T


def network(prior: Prior) -> GaussUNet:
    with Streams(0).torch_default("init"):
        return GaussUNet((1, 4, 4), CLASSES, SMALL, prior)


def test_with_an_isotropic_prior_it_is_edm():
    """Mean 0 and covariance sigma_data^2 I, for every label and the null label: the same D and the same weight."""
    flat = dataclasses.replace(
        mixture(), means=torch.full((CLASSES, D), 0.5), variances=torch.full((CLASSES, K), SIGMA_DATA**2 / 4),
        residual=torch.tensor(SIGMA_DATA**2 / 4),
    )  # fmt: skip
    net = network(Prior.of(flat))
    torch.nn.init.normal_(net.head.weight)
    g = torch.Generator().manual_seed(1)
    sigma, labels = torch.rand(40, generator=g) * 5 + 0.01, torch.arange(40) % (CLASSES + 1)
    x = torch.randn(40, 1, 4, 4, generator=g) * sigma[:, None, None, None]
    torch.testing.assert_close(
        GaussDenoiser(net, Edm())(x, sigma, labels), Denoiser(net, Edm())(x, sigma, labels), rtol=0, atol=1e-6 * 5
    )
    torch.testing.assert_close(GaussDenoiser(net, Edm()).weight(sigma, labels), Edm().weight(sigma), rtol=1e-6, atol=0)


@pytest.mark.parametrize("components", [1, 4])
def test_the_prior_is_the_exact_denoiser(components):
    """Against the posterior mean by weighted draws, and its error against `variance`."""
    made = mixture(components)
    prior = Prior.of(made)
    y, sigma, n = 1, 0.6, 30_000
    labels = np.full(n, y)
    clean = from_unit(drawn_in_full(made, labels, 0))
    g = torch.Generator().manual_seed(0)
    x = clean[:3] + sigma * torch.randn(3, D, generator=g)
    weights = torch.softmax(-torch.cdist(x, clean).square() / (2 * sigma**2), dim=1)
    same = torch.full((3,), y)
    torch.testing.assert_close(prior.denoise(x, torch.full((3,), sigma), same), weights @ clean, rtol=0, atol=0.03)
    noisy = clean[:5_000] + sigma * torch.randn(5_000, D, generator=g)
    level, same = torch.full((5_000,), sigma), torch.full((5_000,), y)
    error = float((prior.denoise(noisy, level, same) - clean[:5_000]).square().mean())
    bound = float(prior.variance(level[:1], same[:1]))
    assert error == pytest.approx(bound, rel=0.03) if components == 1 else error < bound


def test_the_null_label_has_the_pooled_moments():
    made = mixture(4)
    prior = Prior.of(made)
    labels = np.repeat(np.arange(CLASSES), [5_000, 3_000, 2_000])
    clean = from_unit(drawn_in_full(made, labels, 0))
    np.testing.assert_allclose(prior.means[CLASSES], clean.mean(0), atol=0.04)
    basis = prior.basis @ prior.vectors[CLASSES]
    seen = torch.cov(((clean - clean.mean(0)) @ basis).T)
    np.testing.assert_allclose(seen.diagonal(), prior.variances[CLASSES], rtol=0.06)
    trace = float(prior.variances[CLASSES].sum() + (D - K) * prior.residual[CLASSES])
    assert trace == pytest.approx(float((clean - clean.mean(0)).square().sum(1).mean()), rel=0.03)


def test_at_step_0_ddim_draws_the_mixture():
    """Released means and covariances, by the sampler of the study."""
    made = mixture()
    model = Model(
        network(Prior.of(made)), shape=[1, 4, 4], num_classes=CLASSES, components=1, basis_size=K,
        params=ModelParams(network=SMALL).model_dump(mode="json"),
    )  # fmt: skip
    labels = np.arange(1500) % CLASSES
    sampler = SamplerParams.model_validate({"num_sampling_steps": 50, "sigma_max": 20.0, "sigma_min": 0.01})
    drawn = torch.from_numpy(model.sample(labels, sampler, Streams(0)).reshape(-1, D)) / 255.0
    exact = drawn_in_full(made, np.arange(12_000) % CLASSES, 1).clamp(0, 1)
    for y in range(CLASSES):
        ours, theirs = drawn[labels == y], exact[np.arange(12_000) % CLASSES == y]
        np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.025)
        np.testing.assert_allclose(torch.cov(ours.T), torch.cov(theirs.T), atol=0.008)
    again = Model.from_state(model.state())
    few = (labels[:5], sampler, Streams(0))
    np.testing.assert_array_equal(again.sample(*few), model.sample(*few))


def spec(epsilon: float = 5.0, **params) -> RunSpec:
    recipe = {
        "network": {"channels": 8, "channel_mult": [1], "blocks_per_level": 1, "attention_resolutions": []},
        "prior": {**BOUNDS, "components": 2, "rounds": 2}, "noise_multiplicity": 2, "lr": 1e-2,
        "dp": {"expected_batch_size": 16, "steps": 6, "max_grad_norm": 1.0},
    }  # fmt: skip
    return RunSpec(
        study="s", dataset="d", method="m", impl="dpdm.diffusion.gauss:DPDMGauss", params=recipe | params,
        epsilon=epsilon, delta=1e-3, allow_large_delta=True, accountant="rdp", seed=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (120, 1, 4, 4)).astype(np.uint8), np.arange(120) % CLASSES, CLASSES)


def test_the_events_are_the_releases_and_one_dp_sgd_within_the_budget(images):
    _, ledger = train(spec(), images, Log("test"))
    names = [event.name for event in ledger.events]
    assert names == ["class_counts", "class_sums", "scatter", "k_means_0", "k_means_1", "class_scatter", "denoiser"]
    assert 0.99 * 5.0 < epsilon_spent(ledger.events, 1e-3, "rdp") <= 5.0


def test_the_noise_of_the_releases_follows_their_share_whatever_the_steps(images):
    """Twice the steps: more noise in each of them, the same in the releases; four times the share: half the noise."""

    def noise(share: float, steps: int) -> dict[str, float]:
        dp = {"expected_batch_size": 16, "steps": steps, "max_grad_norm": 1.0}
        _, _, plan, _ = prepare_run(spec(prior_share=share, dp=dp), images.meta)
        return {mechanism.name: mechanism.noise_multiplier for mechanism in plan}

    few, many, rich = noise(0.1, 6), noise(0.1, 12), noise(0.4, 6)
    assert few.pop("denoiser") is many.pop("denoiser") is None
    assert few == many
    assert all(rich[name] == pytest.approx(few[name] / 2) for name in few)


def test_a_killed_run_neither_repeats_the_releases_nor_pays_twice(images, tmp_path, monkeypatch):
    """Stopped in the middle of DP-SGD: the same model and ledger, and no statistic is computed again."""
    whole, ledger = train(spec(), images, Log("test"))
    path = tmp_path / "checkpoint.pt"
    update, calls = torch.optim.Adam.step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return update(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(spec(), images, Log("test"), checkpoint=path, checkpoint_interval=0.0)
    monkeypatch.undo()
    from dpdm.privacy import door

    monkeypatch.setattr(door.PrivateData, "_clipped_total", lambda *_: pytest.fail("released again"))
    resumed, again = train(spec(), images, Log("test"), checkpoint=path)
    assert again.events == ledger.events
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    saved = artifacts.read_tensors(path)
    saved["states"]["class_sums"]["event"]["noise_multiplier"] /= 2
    artifacts.write_tensors(path, saved)
    with refuses(path, "class_sums"):
        train(spec(), images, Log("test"), checkpoint=path)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"parametrisation": {"kind": "v"}}, "parametrisation"),
        ({"conditional": False}, "conditional"),
        ({"prior_share": 1.0}, "prior_share"),
        ({"prior": {**BOUNDS, "count_share": 0.9}}, "count_share"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(params, named):
    with pytest.raises(UserError, match=named):
        prepare_run(spec(**params), ImageMeta(120, (1, 4, 4), CLASSES))


def test_releases_that_take_the_whole_budget_are_refused():
    from dpdm.privacy import Budget, Mechanism, settled

    steps = Mechanism.poisson("net", 10, 100, 5)
    with pytest.raises(UserError, match="a, b"):
        settled([Mechanism.gaussian("a", 0.5), Mechanism.gaussian("b", 0.5), steps], Budget(1.0, 1e-5), "rdp")
    alone = (Mechanism.gaussian("a", 0.5), Mechanism.gaussian("b", 0.5))
    assert settled(alone, Budget(1.0, 1e-5), "rdp") == alone
    assert settled([Mechanism.gaussian("a", 0.5), steps], Budget(math.inf, 1e-5), "rdp")[0].noise_multiplier == 0


def test_bf16_leaves_the_prior_exact():
    denoiser = GaussDenoiser(network(Prior.of(mixture(2))), Edm(), "bf16")
    x, sigma, labels = torch.rand(3, 1, 4, 4), torch.full((3,), 0.01), torch.arange(3) % CLASSES
    exact = GaussDenoiser(denoiser.network, Edm())(x, sigma, labels)
    torch.testing.assert_close(denoiser(x, sigma, labels), exact, rtol=0, atol=0)
