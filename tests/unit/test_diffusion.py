"""Network, preconditioning, loss, sampler and EMA of the DPDM, each against the paper's numbers or a closed form."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dpdm.data import ImageMeta
from dpdm.diffusion.denoiser import SIGMA_DATA, EdmDenoiser, edm_scalings, edm_weight, sample_sigma
from dpdm.diffusion.loss import row_losses
from dpdm.diffusion.method import DPDM, Params, update_ema
from dpdm.diffusion.network import NetworkParams, UNet
from dpdm.diffusion.samplers import ddim, karras_schedule
from dpdm.errors import UserError
from dpdm.rng import Streams


@pytest.mark.parametrize(
    ("shape", "classes", "mult", "attention", "count"),
    [
        ((1, 28, 28), 10, (1, 2, 2), (7,), 1_753_345),  # MNIST, Fashion-MNIST
        ((3, 32, 32), 0, (1, 2, 2), (16, 8), 1_804_451),  # CelebA
        ((3, 64, 64), 0, (1, 1, 2, 2), (16, 8), 1_999_907),  # CelebA
        ((3, 32, 32), 10, (1, 2, 2), (16,), 1_754_499),  # CIFAR-10
        ((3, 32, 32), 1000, (1, 2, 2), (16, 8), 1_836_483),  # ImageNet
    ],
)
def test_parameter_counts_are_the_papers(shape, classes, mult, attention, count):
    net = UNet(shape, classes, NetworkParams(channel_mult=mult, attention_resolutions=attention))
    assert sum(p.numel() for p in net.parameters()) == count


def small_net(shape=(1, 8, 8), classes=10) -> UNet:
    with Streams(0).torch_default("net"):
        net = UNet(shape, classes, NetworkParams(channels=8, channel_mult=(1, 2), attention_resolutions=(4,)))
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
    return net.eval()


def batch(n: int, shape=(1, 8, 8)):
    rng = Streams(3)
    return (
        torch.randn(n, *shape, generator=rng.torch("x")),
        torch.rand(n, generator=rng.torch("sigma")) + 0.1,
        torch.randint(0, 10, (n,), generator=rng.torch("y")),
    )


@torch.no_grad()
def test_no_layer_mixes_examples():
    net, (x, sigma, y) = small_net(), batch(6)
    whole = net(x, sigma.log(), y)
    for i in range(6):
        alone = net(x[i : i + 1], sigma[i : i + 1].log(), y[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_input_matters_to_the_network():
    net, (x, sigma, y) = small_net(), batch(2)
    base = net(x, sigma.log(), y)
    for changed in (net(x + 1, sigma.log(), y), net(x, sigma.log() + 1, y), net(x, sigma.log(), (y + 1) % 10)):
        assert not torch.allclose(changed, base, atol=1e-3)


@torch.no_grad()
def test_unconditional_network_ignores_labels():
    net, (x, sigma, y) = small_net(classes=0), batch(2)
    assert torch.equal(net(x, sigma, y), net(x, sigma, (y + 1) % 10))


@torch.no_grad()
def test_a_fresh_network_predicts_nearly_zero():
    """init_scale = 0 of the last layer: D(x) starts as c_skip x."""
    with Streams(0).torch_default("net"):
        net = UNet((1, 8, 8), 10, NetworkParams(channels=8, channel_mult=(1, 2), attention_resolutions=(4,)))
    x, sigma, y = batch(4)
    torch.testing.assert_close(
        EdmDenoiser(net)(x, sigma, y), edm_scalings(sigma)[0][:, None, None, None] * x, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("shape", [(1, 8, 6), (1, 7, 7), (1, 10, 10)])
def test_images_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(UserError, match="pad the images or shorten channel_mult"):
        NetworkParams().check(shape)
    params = Params(dp={"expected_batch_size": 4, "steps": 1, "max_grad_norm": 1.0})
    with pytest.raises(UserError, match="channel_mult"):
        DPDM().plan(params, ImageMeta(100, shape, 10))


def test_edm_scalings_give_unit_variance():
    """EDM's design goals: inputs of F and its effective target have variance 1; lambda cancels c_out^2."""
    sigma = torch.logspace(-2, 2, 30, dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = edm_scalings(sigma)
    torch.testing.assert_close(c_in**2 * (sigma**2 + SIGMA_DATA**2), torch.ones_like(sigma))
    target_variance = ((1 - c_skip) ** 2 * SIGMA_DATA**2 + c_skip**2 * sigma**2) / c_out**2
    torch.testing.assert_close(target_variance, torch.ones_like(sigma))
    torch.testing.assert_close(edm_weight(sigma) * c_out**2, torch.ones_like(sigma))
    torch.testing.assert_close(c_noise, sigma.log() / 4)


def test_sigma_data_is_the_papers():
    assert pytest.approx(math.sqrt(1 / 3)) == SIGMA_DATA


def test_training_noise_levels_are_log_normal():
    logs = sample_sigma(100_000, -1.2, 1.2, Streams(0).torch("s")).log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.02)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.02)


class Recorder(nn.Module):
    """A denoiser that returns a constant and remembers its inputs."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value, self.calls = value, []

    def forward(self, x, sigma, labels):
        self.calls.append((x, sigma, labels))
        return torch.full_like(x, self.value)


def losses(denoiser, images, labels, k, dropout=0.0, seed=0):
    return row_losses(
        denoiser, images, labels, noise_multiplicity=k, p_mean=-1.2, p_std=1.2, label_dropout=dropout,
        null_label=10, generator=Streams(seed).torch("diffusion"),
    )  # fmt: skip


def test_loss_by_hand():
    """D = 0 on images of ones: every row's loss is lambda(sigma) * mean(1)."""
    recorder = Recorder()
    images, labels = torch.ones(3, 1, 4, 4), torch.tensor([1, 2, 3])
    out = losses(recorder, images, labels, k=2)
    (x, sigma, y) = recorder.calls[0]
    assert out.shape == (6,)
    torch.testing.assert_close(out, edm_weight(sigma))
    assert y.tolist() == [1, 2, 3, 1, 2, 3]  # draw-major
    noise = (x - 1) / sigma[:, None, None, None]
    assert len(set(sigma.tolist())) == 6  # every row has its own noise level
    assert not torch.allclose(noise[:3], noise[3:])
    assert float(noise.std()) == pytest.approx(1, rel=0.2)


def test_labels_are_dropped_once_per_image():
    recorder = Recorder()
    labels = torch.arange(10).repeat(100)
    losses(recorder, torch.zeros(1000, 1, 2, 2), labels, k=3, dropout=0.1)
    rows = recorder.calls[0][2].view(3, 1000)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    dropped = rows[0] == 10
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.03)
    assert torch.equal(rows[0][~dropped], labels[~dropped])


def test_karras_schedule():
    sigmas = karras_schedule(50, 0.002, 80.0, 7.0)
    assert float(sigmas[0]) == pytest.approx(80)
    assert float(sigmas[-1]) == pytest.approx(0.002)
    assert bool((sigmas[1:] < sigmas[:-1]).all())
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert float(karras_schedule(3, 0.002, 80.0, 7.0)[1]) == pytest.approx(middle)
    assert karras_schedule(1, 0.002, 80.0, 7.0).tolist() == pytest.approx([80])


def test_ddim_solves_the_probability_flow_of_gaussian_data():
    """Data N(m, s^2): D(x) = m + s^2 / (s^2 + sigma^2) (x - m), and x_0 = m + (x_T - m) s / sqrt(s^2 + sigma_T^2)."""
    m, s = 0.3, 0.5

    def denoise(x, sigma):
        return m + s**2 / (s**2 + sigma[:, None, None, None] ** 2) * (x - m)

    z = torch.randn(64, 1, 2, 2, dtype=torch.float64, generator=Streams(0).torch("z"))
    exact = m + (80 * z - m) * s / math.sqrt(s**2 + 80**2)
    errors = [
        float((ddim(denoise, z, karras_schedule(n, 0.002, 80.0, 7.0)) - exact).abs().max()) for n in (50, 100, 800)
    ]
    assert errors[2] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)  # a first-order method


def test_ddim_recovers_a_point_mass_and_calls_the_denoiser_once_per_level():
    calls = []

    def denoise(x, sigma):
        calls.append(float(sigma[0]))
        return torch.full_like(x, 0.25)

    sigmas = karras_schedule(5, 0.002, 80.0, 7.0)
    out = ddim(denoise, torch.randn(2, 1, 2, 2), sigmas)
    assert torch.equal(out, torch.full_like(out, 0.25))
    assert calls == pytest.approx(sigmas.tolist())


def test_ema_warms_up_and_follows_by_hand():
    averaged, network = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(averaged.weight), nn.init.ones_(network.weight)
    expected = 0.0
    for index in range(5):
        update_ema(averaged, network, 0.999, index)
        decay = (2 + index) / (11 + index)  # (1 + n) / (10 + n) with n = index + 1
        expected = decay * expected + (1 - decay)
        assert float(averaged.weight.detach()) == pytest.approx(expected)
    nn.init.zeros_(averaged.weight)
    update_ema(averaged, network, 0.9, 10**6)
    assert float(averaged.weight.detach()) == pytest.approx(0.1, rel=1e-4)


def test_accounting_does_not_depend_on_the_noise_multiplicity():
    meta = ImageMeta(1000, (1, 8, 8), 10)
    dp = {"expected_batch_size": 64, "steps": 10, "max_grad_norm": 1.0}
    network = {"channels": 8, "channel_mult": (1, 2), "attention_resolutions": (4,)}
    plans = [DPDM().plan(Params(dp=dp, network=network, noise_multiplicity=k), meta) for k in (1, 8, 32)]
    assert plans[0] == plans[1] == plans[2]


def test_defaults_are_the_papers():
    params = Params(dp={"expected_batch_size": 4096, "steps": 4500, "max_grad_norm": 1.0})
    assert (params.noise_multiplicity, params.lr, params.p_mean, params.p_std) == (32, 3e-4, -1.2, 1.2)
    assert (params.label_dropout, params.ema_decay) == (0.1, 0.999)
    assert np.prod(params.network.channel_mult) == 4
