"""Network, preconditioning, loss, sampler and EMA of the DPDM, each against the paper's numbers or a closed form."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refuses
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dpdm.config import load_study
from dpdm.data import ImageMeta
from dpdm.diffusion import samplers
from dpdm.diffusion.denoiser import SIGMA_DATA, Denoiser, Edm, Ve, Vp, VPrediction
from dpdm.diffusion.loss import row_losses
from dpdm.diffusion.method import DPDM, Model, ModelParams, Params, SamplerParams, learning_rate
from dpdm.diffusion.network import NetworkParams, UNet
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.method import train
from dpdm.privacy.dpsgd import add_clipped
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.specs import RunSpec

PAPER = load_study(Path(__file__).parents[2] / "config" / "paper.yaml")
PAPER_COUNTS = {
    "mnist": 1_753_345, "fashion_mnist": 1_753_345, "celeba_32": 1_804_451, "celeba_64": 1_999_907,
    "cifar10": 1_754_499,
}  # fmt: skip


def parameter_count(shape: tuple[int, int, int], classes: int, params: NetworkParams) -> int:
    return sum(p.numel() for p in UNet(shape, classes, params).parameters())


@pytest.mark.parametrize("dataset", PAPER.datasets)
def test_the_papers_study_builds_the_papers_networks(dataset):
    meta = PAPER.datasets[dataset].meta()
    runs = [run for run in PAPER.runs() if run.dataset == dataset and run.impl.endswith(":DPDM")]
    runs = [run for run in runs if "init_from" not in run.params]  # of other papers
    recipes = {parse_params(Params, run.params, "params") for run in runs}
    ((network, conditional),) = {(recipe.network, recipe.conditional) for recipe in recipes}  # one at every epsilon
    assert parameter_count(meta.shape, meta.num_classes if conditional else 0, network) == PAPER_COUNTS[dataset]


def test_the_papers_imagenet_network():
    params = NetworkParams(channel_mult=(1, 2, 2), attention_resolutions=(16, 8))
    assert parameter_count((3, 32, 32), 1000, params) == 1_836_483


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


PARTS = {  # of `small_net`: what a part holds, and what it does not
    "norms": ("down.0.0.norm_in.weight", "middle.1.norm.bias", "norm.weight"),
    "biases": ("stem.bias", "embed.0.bias", "norm.bias", "up.1.0.conv_in.bias"),
    "embeddings": ("classes.weight", "embed.2.weight", "down.0.0.embed.weight", "up.1.0.embed.bias"),
    "last_level": ("up.1.0.conv_in.weight", "up.1.2.norm_in.bias", "norm.weight", "head.weight", "head.bias"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_network_has_its_parameters_and_no_other(part):
    net = small_net()
    names = {id(p): name for name, p in net.named_parameters()}
    found = [names[id(p)] for p in net.parts([part])]
    assert set(PARTS[part]) <= set(found)
    assert found == [name for name in names.values() if name in found]  # in the order of the network
    if part == "biases":
        assert all(name.endswith("bias") for name in found)
    others = {"conv_in.weight", "stem.weight", "query.weight", "skip.weight"}
    assert not [name for name in found if any(map(name.endswith, others)) and not name.startswith("up.1")]
    assert net.parts([]) == []
    assert len(net.parts(["norms", "biases"])) < len(net.parts(["norms"])) + len(net.parts(["biases"]))  # none twice


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
def test_pixel_unshuffle_keeps_the_form_and_divides_the_resolution():
    params = NetworkParams(channels=8, channel_mult=(1, 2), attention_resolutions=(7,), pixel_unshuffle=2)
    net = UNet((1, 28, 28), 10, params)
    seen = []
    net.stem.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].shape, out.shape)))
    out = net(torch.randn(2, 1, 28, 28), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    assert out.shape == (2, 1, 28, 28)
    assert seen == [((2, 4, 14, 14), (2, 8, 14, 14))]
    with refuses("attention_resolutions", "5", "14, 7"):
        NetworkParams(channel_mult=(1, 2), attention_resolutions=(7, 5), pixel_unshuffle=2).check((1, 28, 28))
    with refuses("8"):
        NetworkParams(pixel_unshuffle=2).check((1, 28, 28))


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
        Denoiser(net, Edm())(x, sigma, y), Edm().scalings(sigma)[0][:, None, None, None] * x, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("shape", [(1, 8, 6), (1, 7, 7), (1, 10, 10)])
def test_images_that_cannot_be_halved_are_refused(shape):
    with refuses("channel_mult"):
        NetworkParams().check(shape)
    params = Params(dp={"expected_batch_size": 4, "steps": 1, "max_grad_norm": 1.0})
    with pytest.raises(UserError, match="channel_mult"):
        DPDM().plan(params, ImageMeta(100, shape, 10))


KINDS = {"edm": Edm(), "v": VPrediction(), "vp": Vp(), "ve": Ve()}
SIGMAS = torch.logspace(-2, 1.8, 40, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "data_variance"), [("edm", 1 / 3), ("v", 1.0)])
def test_edm_and_v_promise_unit_variance(kind, data_variance):
    """Inputs and effective targets of F have variance 1, for data of variance s_d^2 (EDM) or 1 (v-prediction)."""
    c_skip, c_out, c_in, _ = KINDS[kind].scalings(SIGMAS)
    one = torch.ones_like(SIGMAS)
    torch.testing.assert_close(c_in**2 * (SIGMAS**2 + data_variance), one)
    torch.testing.assert_close(((1 - c_skip) ** 2 * data_variance + c_skip**2 * SIGMAS**2) / c_out**2, one)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_cancels_c_out(kind):
    _, c_out, _, _ = KINDS[kind].scalings(SIGMAS)
    torch.testing.assert_close(KINDS[kind].weight(SIGMAS) * c_out**2, torch.ones_like(SIGMAS))


def test_noise_conditioning_by_hand():
    two = torch.tensor([2.0], dtype=torch.float64)
    assert float(Edm().scalings(two)[3]) == pytest.approx(math.log(2) / 4)
    assert float(VPrediction().scalings(two)[3]) == pytest.approx(2 / math.pi * math.acos(1 / math.sqrt(5)))
    assert float(Vp().scalings(two)[3]) == pytest.approx(1000 * float(Vp().t(two)))
    assert float(Ve().scalings(two)[3]) == pytest.approx(0)


def test_t_and_sigma_are_inverse():
    u = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    vp, v = Vp(), VPrediction()
    torch.testing.assert_close(vp.t(vp.sigma(u)), vp.t_min + u * (1 - vp.t_min))
    t = v.scalings(v.sigma(u))[3]
    torch.testing.assert_close(t, 0.000957 + u * (0.992928 - 0.000957), atol=2e-6, rtol=0)  # the paper's t range


def test_noise_level_ranges_are_the_papers():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert VPrediction().sigma(ends).tolist() == pytest.approx([0.001503, 90.02], rel=1e-3)
    assert Ve().sigma(ends).tolist() == pytest.approx([0.002, 80.0])
    assert float(Vp().sigma(ends)[1]) == pytest.approx(math.sqrt(math.exp(19.9 / 2 + 0.1) - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_training_noise_levels_follow_the_quantile_function(kind):
    """Kolmogorov's distance between draws and p(sigma) is that of a true sample."""
    draws = KINDS[kind].sample_sigma(20_000, Streams(0).torch("s")).double().sort().values
    grid = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    empirical = torch.searchsorted(draws, KINDS[kind].sigma(grid)) / len(draws)
    assert float((empirical - grid).abs().max()) < 1.63 / math.sqrt(20_000)


@pytest.mark.parametrize(
    ("kind", "height", "where"), [("v", 0.320, 0.577), ("edm", 0.332, 0.301), ("vp", 0.404, 0.448)]
)
def test_effective_noise_densities_peak_where_the_papers_figure_3_does(kind, height, where):
    """p(ln sigma) lambda / lambda_EDM, normalised, from the quantile function; values read off the figure."""
    u = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=torch.float64)
    sigma = KINDS[kind].sigma(u)
    density = (u[1:] - u[:-1]) / (sigma[1:].log() - sigma[:-1].log())
    middle = (sigma[1:] * sigma[:-1]).sqrt()
    density = density * KINDS[kind].weight(middle) / Edm().weight(middle)
    density = density / (density * (sigma[1:].log() - sigma[:-1].log())).sum()
    peak = int(density.argmax())
    assert float(density[peak]) == pytest.approx(height, abs=0.006)
    assert float(middle[peak]) == pytest.approx(where, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimal_network_of_a_point_mass_denoises_exactly(kind):
    """With F = (a - c_skip x) / c_out, D must return the point a at every noise level."""
    point, x = 0.25, torch.randn(len(SIGMAS), 1, 2, 2, dtype=torch.float64)
    c_skip, c_out, c_in, _ = (c[:, None, None, None] for c in KINDS[kind].scalings(SIGMAS))

    class Optimal(nn.Module):
        def forward(self, scaled, c_noise, labels):
            return (point - c_skip * scaled / c_in) / c_out

    denoised = Denoiser(Optimal(), KINDS[kind])(x, SIGMAS, torch.zeros(len(SIGMAS)))
    torch.testing.assert_close(denoised, torch.full_like(x, point))


def test_sigma_data_is_the_papers():
    assert pytest.approx(math.sqrt(1 / 3)) == SIGMA_DATA


def test_training_noise_levels_are_log_normal():
    logs = Edm().sample_sigma(100_000, Streams(0).torch("s")).log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.02)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.02)


class Recorder(Denoiser):
    """A denoiser that returns a constant and remembers its inputs."""

    def __init__(self, value: float = 0.0):
        super().__init__(nn.Identity(), Edm())
        self.value, self.calls = value, []

    def forward(self, x, sigma, labels):
        self.calls.append((x, sigma, labels))
        return torch.full_like(x, self.value)


def losses(denoiser, images, labels, k, dropout=0.0, seed=0):
    return row_losses(
        denoiser, denoiser, images, labels, noise_multiplicity=k, label_dropout=dropout, null_label=10,
        generator=Streams(seed).torch("diffusion"),
    )  # fmt: skip


def test_loss_by_hand():
    """D = 0 on images of one value each: every row's loss is lambda(sigma) times its square, in draw-major order."""
    recorder = Recorder()
    images, labels = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, 1, 4, 4), torch.tensor([1, 2, 3])
    out = losses(recorder, images, labels, k=2)
    (x, sigma, y) = recorder.calls[0]
    assert out.shape == (6,)
    torch.testing.assert_close(out, Edm().weight(sigma) * torch.tensor([1.0, 4.0, 9.0, 1.0, 4.0, 9.0]))
    assert y.tolist() == [1, 2, 3, 1, 2, 3]  # draw-major
    noise = (x - images.repeat(2, 1, 1, 1)) / sigma[:, None, None, None]
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


def schedule(steps: int) -> list[float]:
    return samplers.karras_schedule(steps, 0.002, 80.0, 7.0)


def test_karras_schedule():
    sigmas = schedule(50)
    assert sigmas[0] == pytest.approx(80)
    assert sigmas[-1] == pytest.approx(0.002)
    assert sigmas == sorted(sigmas, reverse=True)
    assert schedule(3)[1] == pytest.approx(((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7)
    assert schedule(1) == pytest.approx([80])


M, S = 0.3, 0.5  # Gaussian data N(m, s^2): D(x) = m + s^2 / (s^2 + sigma^2) (x - m)


def gaussian_denoiser(x, sigma):
    return M + S**2 / (S**2 + sigma**2) * (x - M)


def noise_source(n: int, seed: int = 0):
    generator = Streams(seed).torch("z")
    return lambda: torch.randn(n, 1, 2, 2, dtype=torch.float64, generator=generator)


def churn(denoise, noise, sigmas, s_churn=0.0, s_min=0.05, s_max=50.0, s_noise=1.0):
    return samplers.churn(denoise, noise, sigmas, s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise)


@pytest.mark.parametrize(("sampler", "order"), [(samplers.ddim, 1), (churn, 2), (samplers.dpmpp_2m, 2)])
def test_deterministic_samplers_solve_the_probability_flow(sampler, order):
    """x_0 = m + (x_T - m) s / sqrt(s^2 + sigma_T^2), reached at the sampler's order."""
    start = 80 * noise_source(64)()
    exact = M + (start - M) * S / math.sqrt(S**2 + 80**2)

    def error(n: int) -> float:
        return float((sampler(gaussian_denoiser, noise_source(64), schedule(n)) - exact).abs().max())

    assert error(400) < 0.02
    assert error(50) / error(100) == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize(
    "sampler",
    [samplers.stochastic_ddim, lambda d, n, s: churn(d, n, s, s_churn=40), lambda d, n, s: churn(d, n, s, s_churn=1e9)],
    ids=["stochastic_ddim", "churn", "churn at its cap"],
)
def test_stochastic_samplers_reach_the_data_distribution(sampler):
    out = sampler(gaussian_denoiser, noise_source(5000), schedule(300))
    assert float(out.mean()) == pytest.approx(M, abs=0.02)
    assert float(out.std()) == pytest.approx(S, rel=0.03)
    start = noise_source(5000)()
    correlation = float(torch.corrcoef(torch.stack([start.flatten(), out.flatten()]))[0, 1])
    assert correlation < 0.9  # fresh noise was added; a deterministic sampler gives 1


def calls_of(sampler, steps: int) -> list[float]:
    calls = []

    def denoise(x, sigma):
        calls.append(sigma)
        return torch.full_like(x, 0.25)

    out = sampler(denoise, noise_source(2), schedule(steps))
    torch.testing.assert_close(out, torch.full_like(out, 0.25))  # a point mass is recovered by every sampler
    return calls


def test_evaluations_per_sampler():
    assert calls_of(samplers.ddim, 5) == pytest.approx(schedule(5))
    assert calls_of(samplers.stochastic_ddim, 5) == pytest.approx(schedule(5))
    assert calls_of(samplers.dpmpp_2m, 5) == pytest.approx(schedule(5))
    assert len(calls_of(churn, 5)) == 9


def test_churn_raises_the_noise_only_between_s_min_and_s_max_and_at_most_doubles_it():
    sigmas = schedule(6)
    first = calls_of(lambda d, n, s: churn(d, n, s, s_churn=1e6, s_min=0.05, s_max=50.0), 6)[::2]
    expected = [2 * sigma if 0.05 <= sigma <= 50 else sigma for sigma in sigmas]
    assert first == pytest.approx(expected)
    mild = calls_of(lambda d, n, s: churn(d, n, s, s_churn=1.5, s_min=0.0), 6)[::2]
    assert mild == pytest.approx([1.25 * sigma if sigma <= 50 else sigma for sigma in sigmas])


@pytest.mark.parametrize("sampler", ["ddim", "stochastic_ddim", "churn", "dpmpp_2m"])
def test_the_spread_of_a_sampler_is_what_a_simulation_finds(sampler, monkeypatch):
    more = {"s_churn": 4.0, "s_min": 0.05} if sampler == "churn" else {}
    chosen = SamplerParams.model_validate({"kind": sampler, "num_sampling_steps": 6} | more).root
    monkeypatch.setattr(samplers, "SPREADS", np.array([S]))
    (ratio,) = samplers.spread(chosen.run, chosen.num_sampling_steps + 1)
    simulated = float(chosen.run(gaussian_denoiser, noise_source(20_000)).std()) / S
    assert simulated == pytest.approx(ratio, rel=0.02)


def doubts_of(sampler: dict) -> list[str]:
    params = Params(dp={"expected_batch_size": 4, "steps": 1, "max_grad_norm": 1.0})
    return DPDM().doubts(params, SamplerParams.model_validate(sampler), ImageMeta(10, (1, 8, 8), 10))


def test_a_sampler_that_changes_the_spread_is_doubted():
    (few,) = doubts_of({"kind": "churn", "num_sampling_steps": 8, "s_churn": 0.08, "s_min": 0.025})
    assert "1.33 to 1.94" in few
    (ddim,) = doubts_of({"num_sampling_steps": 15})
    assert "0.74 to 0.83" in ddim
    assert not doubts_of({"kind": "churn", "num_sampling_steps": 1000, "s_churn": 100.0, "s_min": 0.05})  # the paper's
    (near,) = doubts_of({"num_sampling_steps": 80})
    assert "0.95 to 0.97" in near
    assert not doubts_of({"num_sampling_steps": 120})  # 0.96 to 0.98


def test_guidance_by_hand():
    conditional, unconditional = (lambda x, s: x * 0 + 3.0), (lambda x, s: x * 0 + 1.0)
    x = torch.zeros(2)
    assert samplers.guided(conditional, unconditional, 0.5)(x, 1.0).tolist() == [4.0, 4.0]  # 1.5 * 3 - 0.5 * 1
    assert samplers.guided(conditional, None, 0.0) is conditional


SMALL = {"channels": 8, "channel_mult": (1, 2), "attention_resolutions": (4,)}


def test_guidance_needs_a_model_that_knows_to_go_without_labels():
    params = ModelParams(
        network={"channels": 8, "channel_mult": (1, 2), "attention_resolutions": ()}, label_dropout=0.0
    )
    guided = SamplerParams.model_validate({"guidance": 1.0, "num_sampling_steps": 2})
    for classes, kept in ((0, params.model_copy(update={"label_dropout": 0.1})), (10, params)):
        model = Model(
            small_net(classes=classes), shape=[1, 8, 8], num_classes=classes, params=kept.model_dump(mode="json")
        )
        with refuses("guidance", "conditional"):
            model.sample(np.zeros(2, np.int64), guided, Streams(0))


@pytest.mark.parametrize(
    "sampler",
    [
        {"kind": "ddim"}, {"kind": "stochastic_ddim"}, {"kind": "churn", "s_churn": 20.0, "s_min": 0.05},
        {"kind": "ddim", "guidance": 0.5},
    ],
)  # fmt: skip
def test_samples_do_not_depend_on_the_batch(sampler):
    params = ModelParams(network={"channels": 8, "channel_mult": (1, 2), "attention_resolutions": (4,)})
    model = Model(small_net(), shape=[1, 8, 8], num_classes=10, params=params.model_dump(mode="json"))
    labels = np.arange(7) % 10
    whole, parts = (
        model.sample(
            labels, SamplerParams.model_validate(sampler | {"num_sampling_steps": 4, "max_batch_size": n}), Streams(0)
        )
        for n in (100, 2)
    )
    assert np.abs(whole.astype(int) - parts.astype(int)).max() <= 1  # one grey level: float summation order


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"kind": "churn", "s_churn": 1.0, "s_min": 51.0}, "s_min = 51.0 must not be above s_max = 50.0"),
        ({"sigma_min": 90.0}, "sigma_min = 90.0 must be below sigma_max = 80.0"),
        ({"rho": 1e-3}, "rho"),
        ({"rho": 1e300}, "rho"),
        ({"kind": "ddim", "s_churn": 1.0}, "s_churn: unknown key"),
        ({"num_sampling_steps": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_sampler_parameters(sampler, message):
    with pytest.raises(UserError, match=message):
        parse_params(SamplerParams, sampler, "samplers.fid")


def test_the_linear_schedule_falls_from_lr_towards_zero():
    dp = {"expected_batch_size": 4, "steps": 4, "max_grad_norm": 1.0}
    linear = Params(dp=dp, lr=0.4, lr_schedule="linear")
    assert [learning_rate(linear, i, 4) for i in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert {learning_rate(Params(dp=dp, lr=0.4), i, 4) for i in range(4)} == {0.4}  # the paper's


def test_training_follows_the_schedule(digits64):
    params = {
        "network": {"channels": 8, "channel_mult": [1], "blocks_per_level": 1, "attention_resolutions": []},
        "dp": {"expected_batch_size": 8, "steps": 2, "max_grad_norm": 1.0},
        "noise_multiplicity": 1, "lr": 0.01, "lr_schedule": "linear", "betas": [0.5, 0.9],
    }  # fmt: skip
    spec = RunSpec(
        study="s", dataset="d", method="dpdm", impl="dpdm.diffusion.method:DPDM", params=params, epsilon=10.0,
        delta=1e-5, allow_large_delta=True, accountant="rdp", seed=0,
    )  # fmt: skip
    rates, betas = [], set()

    def look(adam, *_):
        rates.append(adam.param_groups[0]["lr"])
        betas.add(adam.param_groups[0]["betas"])

    hook = register_optimizer_step_pre_hook(look)
    try:
        train(spec, digits64, Log("test"))
    finally:
        hook.remove()
    assert rates == pytest.approx([0.01, 0.005])
    assert betas == {(0.5, 0.9)}
    with refuses("betas", "1"):
        parse_params(Params, params | {"betas": [0.9, 1.0]}, "methods.x.params")
    with refuses("betas", "fewer", "0.5"):
        parse_params(Params, params | {"betas": [0.9, 0.99, 0.5]}, "methods.x.params")


def test_parts_that_are_not_trained_stay_as_they_were(digits64):
    """Bit by bit, in the model that is kept; and those that are trained move."""
    network = {"channels": 8, "channel_mult": [1], "blocks_per_level": 1, "attention_resolutions": []}
    dp = {"expected_batch_size": 16, "steps": 2, "max_grad_norm": 1.0}
    params = {"network": network, "noise_multiplicity": 2, "dp": dp, "train_only": ["norms", "last_level"]}
    spec = RunSpec(
        study="s", dataset="d", method="m", impl="dpdm.diffusion.method:DPDM", params=params, epsilon=10.0,
        delta="1/(2n)", allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip
    model, ledger = train(spec, digits64, Log("test"))
    with Streams(0, "method").torch_default("init"):
        first = UNet((1, 8, 8), 10, parse_params(NetworkParams, network, "network"))
    trained = {id(p) for p in first.parts(params["train_only"])}
    moved = dict(zip(first.named_parameters(), model.network.parameters(), strict=True))
    assert {id(p) for (_, p), now in moved.items() if not torch.equal(p, now)} == trained
    assert [event.steps for event in ledger.events] == [2]
    with refuses("train_only", "head"):
        parse_params(Params, params | {"train_only": ["head"]}, "methods.x.params")


def test_bf16_gradients_are_near_those_of_float32_and_are_clipped_as_such():
    x, labels = torch.rand(6, 1, 8, 8, generator=Streams(0).torch("x")) * 2 - 1, torch.arange(6)
    with Streams(0).torch_default("init"):
        network = UNet((1, 8, 8), 10, NetworkParams(channels=8, channel_mult=(1,), attention_resolutions=(8,)))
        nn.init.xavier_uniform_(network.head.weight)  # at first 0, and then nothing before it moves
    sums = {}
    for precision in ("float32", "bf16"):
        denoiser = Denoiser(network, Edm(), precision)
        gradients = PerExampleGradients(denoiser, 2)
        with Streams(0).torch_default("loss"):
            gradients.backward(lambda x, y: row_losses(denoiser, denoiser, x, y, 2, 0.1, 10), x, labels)  # noqa: B023
        found = [p.grad_sample for p in network.parameters()]
        assert {g.dtype for g in found} == {torch.float32}
        sums[precision] = torch.zeros(sum(p.numel() for p in network.parameters()), dtype=torch.float64)
        add_clipped(sums[precision], found, 0.1)
        gradients.close()
    assert 0 < (sums["float32"] - sums["bf16"]).norm() < 0.1 * sums["float32"].norm()
    assert sums["bf16"].norm() <= 6 * 0.1


@pytest.mark.parametrize("impl", ["dpdm.diffusion.method:DPDM", "dpdm.diffusion.gauss:DPDMGauss"])
def test_a_bf16_run_computes_its_layers_in_bfloat16_and_keeps_float32(digits64, impl):
    network = {"channels": 8, "channel_mult": [1], "blocks_per_level": 1, "attention_resolutions": []}
    dp = {"expected_batch_size": 16, "steps": 1, "max_grad_norm": 1.0}
    params = {"network": network, "noise_multiplicity": 2, "dp": dp, "precision": "bf16"}
    if impl.endswith("Gauss"):
        params["prior"] = {"max_image_norm": 3.0, "max_centered_norm": 2.0, "max_component_norm": 2.0, "components": 2}
    spec = RunSpec(
        study="s", dataset="d", method="m", impl=impl, params=params, epsilon=10.0, delta="1/(2n)",
        allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip
    seen: set[torch.dtype] = set()
    hook = nn.modules.module.register_module_forward_hook(
        lambda layer, _, out: seen.add(out.dtype) if isinstance(layer, nn.Conv2d) else None
    )
    try:
        model, ledger = train(spec, digits64, Log("test"))
    finally:
        hook.remove()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert ledger.events[-1].sensitivity == 1.0


def test_the_preconditioning_of_a_bf16_denoiser_is_exact():
    """At a low noise level bfloat16 would blur an image by more than the noise."""
    x, sigma, labels = torch.rand(4, 1, 8, 8) * 2 - 1, torch.full((4,), 1e-3), torch.zeros(4, dtype=torch.long)
    network = UNet((1, 8, 8), 10, NetworkParams(channels=8, channel_mult=(1,), attention_resolutions=()))
    out = Denoiser(network, Edm(), "bf16")(x, sigma, labels)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, x, rtol=0, atol=1e-3)


def test_accounting_does_not_depend_on_the_noise_multiplicity():
    meta = ImageMeta(1000, (1, 8, 8), 10)
    dp = {"expected_batch_size": 64, "steps": 10, "max_grad_norm": 1.0}
    network = {"channels": 8, "channel_mult": (1, 2), "attention_resolutions": (4,)}
    plans = [DPDM().plan(Params(dp=dp, network=network, noise_multiplicity=k), meta) for k in (1, 8, 32)]
    assert plans[0] == plans[1] == plans[2]


def test_defaults_are_the_papers():
    params = Params(dp={"expected_batch_size": 4096, "steps": 4500, "max_grad_norm": 1.0})
    assert (params.noise_multiplicity, params.lr, params.parametrisation) == (32, 3e-4, Edm(p_mean=-1.2, p_std=1.2))
    assert (params.label_dropout, params.ema_decay, params.lr_schedule, params.betas) == (
        0.1, 0.999, "constant", (0.9, 0.999)
    )  # fmt: skip
    assert np.prod(params.network.channel_mult) == 4


@pytest.mark.parametrize("channels", [8, 12, 36, 44, 132])
def test_every_width_that_the_schema_accepts_can_be_built(channels):
    NetworkParams(channels=channels)
    UNet((1, 8, 8), 10, NetworkParams(channels=channels, channel_mult=(1, 2), attention_resolutions=()))


def test_guidance_that_cannot_work_is_refused_before_training():
    params = Params(dp={"expected_batch_size": 4, "steps": 1, "max_grad_norm": 1.0}, conditional=False)
    guided = SamplerParams.model_validate({"guidance": 1.0})
    with refuses("guidance", "conditional"):
        DPDM().check_sampler(params, guided, ImageMeta(10, (1, 8, 8), 10))
