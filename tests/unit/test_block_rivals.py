"""The two methods behind noised gradients at generated images: DP-Sinkhorn and GS-WGAN."""

import copy
import io
import math
import re

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from baselines import _gan, dp_sinkhorn, gs_wgan
from baselines.dp_sinkhorn import DPSinkhorn, ground_cost, sinkhorn
from baselines.gs_wgan import GSWGAN, Shards, train_critic
from dpdm.artifacts import canonical_json
from dpdm.data import ImageMeta, ImageSet, balanced_labels
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.method import train
from dpdm.networks import update_ema
from dpdm.privacy.block import BlockGradients, BlockStep
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.specs import RunSpec

pytestmark = pytest.mark.slow

METHODS = {"dp_sinkhorn": DPSinkhorn, "gs_wgan": GSWGAN}
SMALL = {
    "dp_sinkhorn": {
        "blocks": {"steps": 6, "max_block_norm": 0.5, "expected_batch_size": 8}, "generated_batch_size": 6, "width": 2,
    },
    "gs_wgan": {
        "blocks": {"steps": 6, "max_block_norm": 1.0, "shards": 3}, "generated_batch_size": 4, "width": 2,
        "warm_up_steps": 2, "critic_steps": 2,
    },
}  # fmt: skip
N = 40


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (N, 1, 8, 8), np.uint8), np.arange(N) % 10, 10)


def spec(method: str, epsilon: float = 5.0, **params) -> RunSpec:
    blocks = SMALL[method]["blocks"] | params.pop("blocks", {})
    return RunSpec(
        study="s", dataset="d", method=method, impl=f"baselines.{method}:{METHODS[method].__name__}",
        params=SMALL[method] | {"blocks": blocks} | params, epsilon=epsilon, delta="1/(2n)",
        allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip


def result(model, ledger) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    torch.save(model.state(), buffer)
    return buffer.getvalue(), canonical_json(ledger.to_json())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# --- the transport cost -----------------------------------------------------------------------------------------


def test_the_ground_cost_is_the_formula():
    x, y = normal(3, 4), normal(5, 4, seed=1)
    expected = [[float(((a - b) ** 2).sum() + 3 * (a - b).abs().sum()) for b in y] for a in x]
    assert ground_cost(x, y, 3.0).numpy() == pytest.approx(np.array(expected))


@pytest.mark.parametrize("l1_weight", [0.0, 1.0, 3.0])
def test_small_blur_gives_the_exact_assignment(l1_weight):
    x, y = normal(12, 3), normal(12, 3, seed=1) + 0.3
    cost = ground_cost(x, y, l1_weight).numpy()
    rows, columns = linear_sum_assignment(cost)
    exact = cost[rows, columns].mean()
    assert float(sinkhorn(x, y, l1_weight, 1e-3, 2000)) == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("blur", [0.2, 1.0, 10.0])
def test_two_symmetric_points_have_a_closed_form(blur):
    """Costs 0 and c: mean f + mean g = -blur log((1 + exp(-c / blur)) / 2)."""
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    c = 1.0 + 2.0
    expected = -blur * math.log((1 + math.exp(-c / blur)) / 2)
    assert float(sinkhorn(x, x, 2.0, blur, 60)) == pytest.approx(expected, rel=1e-9)


def test_one_point_pays_the_mean_cost():
    x, y = normal(1, 4), normal(7, 4, seed=1)
    assert float(sinkhorn(x, y, 1.0, 0.5, 60)) == pytest.approx(float(ground_cost(x, y, 1.0).mean()))


def test_uneven_sets_against_the_plan_of_plain_sinkhorn():
    """The textbook algorithm (scaling vectors, no logarithms) and the primal value of its plan."""
    x, y, blur = normal(5, 3), normal(8, 3, seed=1), 2.0
    cost = ground_cost(x, y, 1.0).numpy()
    kernel, u, v = np.exp(-cost / blur), np.ones(5), np.ones(8)
    for _ in range(3000):
        u = (1 / 5) / (kernel @ v)
        v = (1 / 8) / (kernel.T @ u)
    plan = u[:, None] * kernel * v
    expected = (plan * cost).sum() + blur * (plan * np.log(plan * 5 * 8)).sum()
    assert float(sinkhorn(x, y, 1.0, blur, 300)) == pytest.approx(expected, rel=1e-6)


def test_the_cost_is_symmetric():
    x, y = normal(6, 4), normal(9, 4, seed=1)
    assert float(sinkhorn(x, y, 1.0, 2.0, 500)) == pytest.approx(float(sinkhorn(y, x, 1.0, 2.0, 500)), rel=1e-5)


def test_the_debiased_divergence_is_zero_for_equal_sets_alone():
    def divergence(x, y):
        return float(
            sinkhorn(x, y, 1.0, 0.5, 300) - (sinkhorn(x, x, 1.0, 0.5, 300) + sinkhorn(y, y, 1.0, 0.5, 300)) / 2
        )

    x = normal(10, 4)
    assert divergence(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
    assert divergence(x, x + 0.1) > 0.05
    assert divergence(x, 2 * x) > 0.05


def test_the_gradient_is_the_finite_difference():
    x, y = normal(4, 3).requires_grad_(), normal(6, 3, seed=1)

    def cost(points):
        return sinkhorn(points, y, 1.0, 2.0, 500)

    (gradient,) = torch.autograd.grad(cost(x), x)
    numeric = torch.zeros_like(gradient)
    for i in range(4):
        for j in range(3):
            step = torch.zeros_like(gradient)
            step[i, j] = 1e-5
            numeric[i, j] = (cost(x.detach() + step) - cost(x.detach() - step)) / 2e-5
    torch.testing.assert_close(gradient, numeric, rtol=1e-3, atol=2e-4)


def test_both_sides_get_their_gradient():
    x, y = normal(5, 3).requires_grad_(), normal(5, 3, seed=1).requires_grad_()
    of_x, of_y = torch.autograd.grad(sinkhorn(x, y, 1.0, 2.0, 500), (x, y))
    again_y, again_x = torch.autograd.grad(sinkhorn(y, x, 1.0, 2.0, 500), (y, x))
    torch.testing.assert_close(of_x, again_x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(of_y, again_y, rtol=1e-3, atol=1e-4)
    assert float(of_y.norm()) > 0.1


def test_the_default_iterations_come_near_the_exact_cost():
    """At the default blur, on points as the method makes them."""
    params, rng = dp_sinkhorn.Params(), np.random.default_rng(0)
    loss = dp_sinkhorn.Loss(params, 10)
    x, y = (
        loss._points(torch.from_numpy(rng.uniform(-1, 1, (50, 1, 8, 8))), torch.from_numpy(rng.integers(10, size=50)))
        for _ in range(2)
    )
    cost = ground_cost(x, y, params.l1_weight).numpy()
    exact = cost[linear_sum_assignment(cost)].mean()
    assert float(loss._cost(x, y)) == pytest.approx(exact, rel=0.02)


# --- the loss of DP-Sinkhorn ------------------------------------------------------------------------------------


def a_loss(**changes):
    params = {"generated_batch_size": 4, "blur": 20.0, "sinkhorn_iterations": 100, "label_weight": 2.0} | changes
    return dp_sinkhorn.Loss(dp_sinkhorn.Params(**params), 3)


def numeric_gradient(value, at: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(at)
    for k in range(at.numel()):
        step = torch.zeros_like(at)
        step.view(-1)[k] = 1e-4
        out.view(-1)[k] = (value(at + step) - value(at - step)) / 2e-4
    return out


def test_the_loss_pulls_to_the_records_and_pushes_fakes_apart():
    """2 S(G, X) - S(G, G') by its definition, on points [pixels; label_weight onehot(label)]."""
    loss = a_loss()
    fakes, labels = normal(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    records, of_records = normal(3, 1, 2, 2, seed=1), torch.tensor([2, 0, 0])

    def points(images, y):
        return torch.cat([images.reshape(len(images), 4), 2.0 * torch.eye(3, dtype=torch.float64)[y]], 1)

    def towards(block):
        return float(2 * sinkhorn(points(block, labels[:4]), points(records, of_records), 1.0, 20.0, 100))

    def apart(block):
        g, other = points(block[[0, 1, 2, 3]], labels[[0, 1, 2, 3]]), points(block[[1, 2, 3, 4]], labels[[1, 2, 3, 4]])
        return float(-sinkhorn(g, other, 1.0, 20.0, 100))

    got = loss.towards(fakes[:4], labels[:4], records, of_records)
    torch.testing.assert_close(got, numeric_gradient(towards, fakes[:4]), rtol=1e-3, atol=1e-4)
    got = loss.apart(fakes, labels)
    torch.testing.assert_close(got, numeric_gradient(apart, fakes), rtol=1e-3, atol=1e-3)


def test_without_fresh_fakes_nothing_is_pushed_apart():
    """G = G': every image is its own partner, up to the blur."""
    fakes = 10 * normal(4, 1, 2, 2)
    gradient = a_loss(blur=0.01).apart(fakes, torch.tensor([0, 1, 2, 0]))
    assert float(gradient.abs().max()) < 1e-6


# --- the critics of GS-WGAN -------------------------------------------------------------------------------------


class LinearCritic(nn.Module):
    """D(x) = w . x: its slope is w everywhere, so that a training step has a closed form."""

    def __init__(self, pixels: int):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, pixels))

    def forward(self, images, labels):
        return images.flatten(1) @ self.w


class ConstantGenerator(nn.Module):
    latent_dim = 2

    def forward(self, latents, labels):
        return torch.full((len(labels), 1, 2, 2), 0.25)


def test_a_critic_step_is_the_formula():
    critic, real = LinearCritic(4), torch.tensor([[[[0.5, -1.0], [0.0, 1.0]]]])
    w, r, f = critic.w.detach().clone(), real.flatten(), torch.full((4,), 0.25)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    labels = torch.zeros(3, dtype=torch.long)
    params = gs_wgan.Params(critic_steps=1, generated_batch_size=5)
    state = critic, optimizer
    train_critic(state, ConstantGenerator(), real.expand(3, -1, -1, -1), labels, params, torch.Generator())
    expected = f - r + 20 * (w.norm() - 1) * w / w.norm() + 2e-3 * (w @ r) * r
    torch.testing.assert_close(critic.w.detach(), w - 0.1 * expected)


def some_shards(**changes) -> Shards:
    params = gs_wgan.Params(warm_up_steps=3, critic_steps=2, generated_batch_size=4, width=2, **changes)
    with Streams(0).torch_default("init"):
        g, critic = gs_wgan.Generator((1, 8, 8), 10, 2, 10), gs_wgan.Critic((1, 8, 8), 10, 2)
    return Shards(params, g, critic, Streams(0), Log(quiet=True))


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def shard_of(seed: int, size: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(size, 1, 8, 8, seed=seed).float().clamp(-1, 1), torch.arange(size) % 10


def test_a_prepared_critic_is_a_function_only_of_its_shard():
    shards = some_shards()
    first, optimizer = shards.prepare(*shard_of(0), 2)
    shards.prepare(*shard_of(1), 0)  # other shards, before or after, and visits to them
    other, _ = shards.prepare(*shard_of(1), 2)
    again, optimizer_again = shards.prepare(*shard_of(0), 2)
    assert torch.equal(weights(again), weights(first))
    assert repr(optimizer_again.state_dict()) == repr(optimizer.state_dict())
    fresh, _ = some_shards().prepare(*shard_of(0), 2)
    assert torch.equal(weights(fresh), weights(first))
    assert not torch.equal(weights(other), weights(first))
    assert not torch.equal(weights(shards.prepare(*shard_of(0), 1)[0]), weights(first))


def test_the_present_generator_does_not_reach_a_prepared_critic():
    """Which release a shard's first visit follows is secret as well."""
    params = gs_wgan.Params(warm_up_steps=2, critic_steps=1, generated_batch_size=4, width=2)
    with Streams(0).torch_default("init"):
        g, critic = gs_wgan.Generator((1, 8, 8), 10, 2, 10), gs_wgan.Critic((1, 8, 8), 10, 2)
    shards = Shards(params, g, critic, Streams(0), Log(quiet=True))
    before, _ = shards.prepare(*shard_of(0), 0)
    with torch.no_grad():
        for p in [*g.parameters(), *critic.parameters()]:
            p.add_(1.0)
    after, _ = shards.prepare(*shard_of(0), 0)
    assert torch.equal(weights(after), weights(before))


def test_a_shard_of_one_record_is_served():
    critic, _ = some_shards().prepare(*shard_of(0, size=1), 0)
    assert torch.isfinite(weights(critic)).all()


def test_a_visit_trains_the_critic_against_the_present_generator_then_asks_it():
    params = gs_wgan.Params(warm_up_steps=3, critic_steps=2, generated_batch_size=4, width=2)
    with Streams(0).torch_default("init"):
        g, critic = gs_wgan.Generator((1, 8, 8), 10, 2, 10), gs_wgan.Critic((1, 8, 8), 10, 2)
    shards = Shards(params, g, critic, Streams(0), Log(quiet=True))
    state = shards.prepare(*shard_of(0), 0)
    by_hand = copy.deepcopy(state)
    with torch.no_grad():
        for p in g.parameters():
            p.add_(0.1)
    fakes, labels = normal(4, 1, 8, 8, seed=3).float(), torch.tensor([1, 1, 4, 9])
    got = shards.gradient(fakes, *shard_of(0), copy.deepcopy(state), labels, 7)
    train_critic(by_hand, g, *shard_of(0), params, Streams(0).torch("visit", 7))
    at = fakes.clone().requires_grad_()
    (-by_hand[0](at, labels).sum() / 2).backward()
    assert torch.equal(got, at.grad)
    assert not torch.equal(weights(by_hand[0]), weights(state[0]))  # and the visit was no empty one


@pytest.mark.parametrize("side", _gan.LEVELS)
@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 2), (1, 1)])
def test_the_networks_of_gs_wgan_serve_every_size(side, channels, classes):
    shape = (channels, side, side)
    g, critic = gs_wgan.Generator(shape, classes, 2, 10), gs_wgan.Critic(shape, classes, 4)
    latents, labels = _gan.draw_inputs(g, 5, Streams(0).torch("fakes"))
    images = g(latents, labels)
    assert images.shape == (5, *shape)
    assert float(images.detach().abs().max()) <= 1
    numbers = critic(images, labels)
    assert numbers.shape == (5,)
    torch.testing.assert_close(critic(images[2:3], labels[2:3]), numbers[2:3])  # every row on its own


def test_the_latents_are_bits_and_uniform_numbers():
    g = gs_wgan.Generator((1, 8, 8), 10, 2, 10)
    latents, labels = _gan.draw_inputs(g, 500, Streams(0).torch("fakes"))
    assert torch.equal(g(latents, labels), g(7 * latents, labels))  # signs alone
    assert not torch.equal(g(-latents, labels), g(latents, labels))
    s = dp_sinkhorn.Generator((1, 8, 8), 10, 2, 16, 8)
    seen = []
    s.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    s(*_gan.draw_inputs(s, 500, Streams(0).torch("fakes")))
    uniform = np.sort(seen[0][:, :16].detach().flatten().numpy())
    assert uniform == pytest.approx(np.linspace(-1, 1, len(uniform)), abs=0.03)


# --- the whole methods, against plain ones ----------------------------------------------------------------------


def test_dp_sinkhorn_without_noise_and_clipping_is_the_plain_method(images):
    blocks = {"steps": 3, "max_block_norm": 1e6, "expected_batch_size": N}
    run = spec("dp_sinkhorn", math.inf, blocks=blocks, lr=1e-2, fresh_fraction=0.3)
    model, _ = train(run, images, Log("test"))
    params = parse_params(dp_sinkhorn.Params, run.params, "params")
    x, y = torch.from_numpy(images.images).float() / 127.5 - 1, torch.from_numpy(images.labels)
    rng = Streams(0, "method")
    with rng.torch_default("init"):
        g = dp_sinkhorn.Generator((1, 8, 8), 10, 2, 16, 8)
    optimizer = torch.optim.Adam(g.parameters(), lr=1e-2)

    def points(images, labels):
        return torch.cat([images.flatten(1), 15 * torch.eye(10)[labels]], 1)

    def cost(a, b):
        return sinkhorn(a, b, params.l1_weight, params.blur, params.sinkhorn_iterations)

    for step in range(3):
        latents, labels = _gan.draw_inputs(g, 8, rng.torch("fakes", step))  # 6, and 0.3 of 6 rounded up
        fakes = points(g(latents, labels), labels)
        loss = 2 * cost(fakes[:6], points(x, y)) - cost(fakes[:6], fakes[2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for ours, plain in zip(model.network.state_dict().values(), g.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


def test_gs_wgan_of_one_shard_without_noise_and_clipping_is_the_plain_method(images):
    run = spec("gs_wgan", math.inf, blocks={"steps": 3, "max_block_norm": 1e6, "shards": 1}, g_lr=1e-2)
    model, _ = train(run, images, Log("test"))
    params = parse_params(gs_wgan.Params, run.params, "params")
    x, y = torch.from_numpy(images.images).float() / 127.5 - 1, torch.from_numpy(images.labels)
    rng = Streams(0, "method")
    with rng.torch_default("init"):
        g, critic = gs_wgan.Generator((1, 8, 8), 10, 2, 10), gs_wgan.Critic((1, 8, 8), 10, 2)
    warm = Shards(params, g, critic, rng, Log(quiet=True)).prepare(x, y, 0)
    optimizer = torch.optim.Adam(g.parameters(), lr=1e-2, betas=(0.5, 0.9))
    averaged = copy.deepcopy(g)
    for step in range(3):
        latents, labels = _gan.draw_inputs(g, 4, rng.torch("fakes", step))
        present = copy.deepcopy(warm)
        train_critic(present, g, x, y, params, rng.torch("visit", step))
        optimizer.zero_grad()
        (-present[0](g(latents, labels), labels).sum() / 2).backward()
        optimizer.step()
        update_ema(averaged, g, 0.999, step + 1)
    torch.testing.assert_close(weights(model.network), weights(averaged))


def black_and_white(n: int, side: int) -> ImageSet:
    labels = np.arange(n) % 2
    return ImageSet(np.broadcast_to(255 * labels[:, None, None, None], (n, 1, side, side)).astype(np.uint8), labels, 2)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("dp_sinkhorn", {"blocks": {"steps": 150, "expected_batch_size": 20}, "generated_batch_size": 20, "lr": 2e-2}),
        ("gs_wgan", {"blocks": {"steps": 60, "shards": 2}, "g_lr": 1e-2, "critic_lr": 1e-2, "ema_decay": 0.9,
                     "critic_steps": 5, "generated_batch_size": 8, "warm_up_steps": 20}),
    ],
)  # fmt: skip
def test_what_can_be_learnt_is_learnt(method, params):
    model, _ = train(spec(method, math.inf, **params), black_and_white(40, 8), Log("test"))
    labels = np.arange(20) % 2
    out = model.sample(labels, METHODS[method].SamplerParams(), Streams(0, "sample")).mean((1, 2, 3))
    assert out[labels == 0].mean() < 64
    assert out[labels == 1].mean() > 191


# --- what reaches whom ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_generator_learns_from_released_blocks_alone(method, images, monkeypatch):
    """With the exact blocks set to zero after they were computed, no data set leaves a trace, whatever its callbacks
    did meanwhile; and the size of a block does not tell how many records were drawn."""
    other = ImageSet(255 - images.images[::-1], (images.labels[::-1] + 3) % 10, 10)
    run = spec(method, math.inf)
    assert result(*train(run, images, Log("test")))[0] != result(*train(run, other, Log("test")))[0]
    exact, sizes = BlockGradients._clipped, []

    def silent(self, fakes, gradient, index):
        sizes.append(len(fakes))
        return torch.zeros_like(exact(self, fakes, gradient, index))

    monkeypatch.setattr(BlockGradients, "_clipped", silent)
    assert result(*train(run, images, Log("test")))[0] == result(*train(run, other, Log("test")))[0]
    assert sizes == [SMALL[method]["generated_batch_size"]] * 12


@pytest.mark.parametrize("method", METHODS)
def test_latents_and_labels_of_fakes_are_fresh_at_every_step(method, images, monkeypatch):
    seen = []
    draw = _gan.draw_inputs
    monkeypatch.setattr(_gan, "draw_inputs", lambda *a: seen.append(draw(*a)) or seen[-1])
    monkeypatch.setattr(BlockGradients, "_test", lambda *_: None)  # on random records a step's draws are tried out
    train(spec(method), images, Log("test"))
    assert len({latents.numpy().tobytes() for latents, _ in seen}) == len(seen) >= 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [1, 5])
def test_cut_and_continued_equals_uninterrupted(method, step, images, tmp_path, monkeypatch, capsys):
    run, path, log = spec(method), tmp_path / "checkpoint.pt", Log("test")
    whole = result(*train(run, images, log))
    release = BlockStep.release

    class Killed(BaseException):
        pass

    def dying(self, *arguments):
        if self.index == step:
            raise Killed
        return release(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BlockStep, "release", dying)
        with pytest.raises(Killed):
            train(run, images, Log("test"), checkpoint=path, checkpoint_interval=0.0)
    again = Log("test")
    assert result(*train(run, images, again, checkpoint=path)) == whole
    assert again.rows == log.rows
    assert f"resumed at step {step} of 6" in capsys.readouterr().err


# --- sampling ---------------------------------------------------------------------------------------------------


def test_batch_norm_samples_from_running_statistics(images):
    model, _ = train(spec("dp_sinkhorn"), images, Log("test"))
    labels, sampler = balanced_labels(9, 10), dp_sinkhorn.DPSinkhorn.SamplerParams()
    whole = model.sample(labels, sampler, Streams(0, "sample"))
    assert not any(layer.training for layer in model.network.modules())
    assert np.array_equal(model.sample(labels[:1], sampler, Streams(0, "sample")), whole[:1])
    restored = dp_sinkhorn.Model.from_state(model.state())
    assert np.array_equal(restored.sample(labels, sampler, Streams(0, "sample")), whole)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("dp_sinkhorn", (1, 10, 12), "image sides must be multiples of 4, got 10x12; pad or crop the images"),
        ("dp_sinkhorn", (1, 28, 30), "image sides must be multiples of 4, got 28x30; pad or crop the images"),
        ("gs_wgan", (1, 10, 10), "side 8, 16, 28 or 32, got 10x10; resize the images or choose another method"),
        ("gs_wgan", (1, 28, 32), "side 8, 16, 28 or 32, got 28x32; resize the images or choose another method"),
    ],
)
def test_a_wrong_image_size_is_refused_before_training(method, shape, message):
    method = METHODS[method]()
    with pytest.raises(UserError, match=re.escape(message)):
        method.plan(method.Params(), ImageMeta(60_000, shape, 10))
    assert method.plan(method.Params(), ImageMeta(60_000, (1, 28, 28), 10))


def test_dp_sinkhorn_serves_oblong_images():
    params = dp_sinkhorn.Params(width=2)
    assert DPSinkhorn().plan(params, ImageMeta(60_000, (3, 12, 20), 10))
    g = dp_sinkhorn.Generator((3, 12, 20), 10, 2, 16, 8)
    assert g(*_gan.draw_inputs(g, 2, Streams(0).torch("fakes"))).shape == (2, 3, 12, 20)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("dp_sinkhorn", "expected_batch_size = 50 is larger than the 30 training images"),
        ("gs_wgan", "shards = 1000 is more than the 30 training images"),
    ],
)
def test_a_plan_that_asks_for_more_than_there_is_is_refused(method, message):
    method = METHODS[method]()
    with pytest.raises(UserError, match=message):
        method.plan(method.Params(), ImageMeta(30, (1, 8, 8), 10))


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("dp_sinkhorn", {"blur": 0.0}, "blur: Input should be greater than 0"),
        ("dp_sinkhorn", {"fresh_fraction": 20.0}, "less than or equal to 1, got 20.0"),
        ("dp_sinkhorn", {"sinkhorn_iterations": 0}, "sinkhorn_iterations: Input should be greater"),
        ("dp_sinkhorn", {"blocks": {"steps": 5, "max_block_norm": 1.0, "shards": 5}}, "blocks.shards: unknown key"),
        (
            "gs_wgan",
            {"blocks": {"steps": 5, "max_block_norm": 0.0, "shards": 5}},
            "blocks.max_block_norm: Input should be greater than 0",
        ),
        ("gs_wgan", {"critic_step": 5}, "did you mean 'critic_steps'"),
        ("gs_wgan", {"critic_steps": 0}, "critic_steps: Input should be greater"),
        ("gs_wgan", {"ema_decay": 1.5}, "less than or equal to 1, got 1.5"),
    ],
)
def test_wrong_values_are_refused_by_name(method, params, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_params(METHODS[method].Params, params, "params")


def test_the_defaults_are_the_published_recipes():
    assert dp_sinkhorn.Params().model_dump() == {
        "blocks": {"steps": 4_000_000, "max_block_norm": 0.5, "expected_batch_size": 50},
        "generated_batch_size": 50, "fresh_fraction": 0.2, "l1_weight": 1.0, "label_weight": 15.0, "blur": 0.05,
        "sinkhorn_iterations": 100, "width": 64, "latent_dim": 16, "label_dim": 8, "lr": 1e-5,
    }  # fmt: skip
    assert gs_wgan.Params().model_dump() == {
        "blocks": {"steps": 20_000, "max_block_norm": 1.0, "shards": 1000}, "generated_batch_size": 32,
        "warm_up_steps": 2000, "critic_steps": 5, "width": 64, "latent_dim": 10, "g_lr": 1e-4, "critic_lr": 1e-4,
        "ema_decay": 0.999,
    }  # fmt: skip


def test_four_million_steps_of_dp_sinkhorn_meet_epsilon_10_at_the_published_noise():
    from dpdm.privacy import Budget
    from dpdm.privacy.accounting import calibrate

    plan = DPSinkhorn().plan(dp_sinkhorn.Params(), ImageMeta(60_000, (1, 28, 28), 10))
    assert calibrate(plan, Budget(10.0, 1e-5), "rdp") == pytest.approx(1.1, rel=0.01)
