"""WGAN-GP by DP-SGD with clipping decay: exact gradients of the penalty, and what the ledger holds of the decay."""

import functools
import io
import math
import re

import numpy as np
import pytest
import torch
from refusals import refuses

from baselines import _gan, dp_wgan_gp
from baselines.dp_wgan_gp import BETAS, DPWGANGP, Params, critic_loss, draw_partners, segments
from dpdm.artifacts import canonical_json
from dpdm.data import ImageMeta, ImageSet, balanced_labels
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.method import train
from dpdm.networks import BatchSize
from dpdm.privacy import Budget, DpSgdParams, calibrate, door, dpsgd, epsilon_spent
from dpdm.privacy.dpsgd import DpSgdStep
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.specs import RunSpec

pytestmark = pytest.mark.slow

N = 40
SHAPE = (1, 8, 8)
# Five steps an epoch, a fall at every epoch: segments of 5, 5 and 2 steps.
SMALL = {
    "hidden": 8, "latent_dim": 6, "d_steps_per_g_step": 2, "decay": {"epochs": 1.0, "rate": 0.3, "floor": 0.35},
    "dp": {"expected_batch_size": 8, "steps": 12, "max_grad_norm": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (N, *SHAPE), np.uint8), np.arange(N) % 10, 10)


def spec(epsilon: float = 5.0, **params) -> RunSpec:
    params = SMALL | {"dp": SMALL["dp"] | params.pop("dp", {})} | params
    return RunSpec(
        study="s", dataset="d", method="dp_wgan_gp", impl="baselines.dp_wgan_gp:DPWGANGP", params=params,
        epsilon=epsilon, delta="1/(2n)", allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip


@pytest.fixture
def given_noise(monkeypatch):
    """A noise scale of 1.3 for any finite budget, in no time: for tests of what is done with it."""
    monkeypatch.setattr(door, "calibrate", lambda plan, budget, accountant: 0.0 if math.isinf(budget.epsilon) else 1.3)


def params_of(run: RunSpec) -> Params:
    return parse_params(Params, run.params, "params")


def result(model, ledger) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    torch.save(model.state(), buffer)
    return buffer.getvalue(), canonical_json(ledger.to_json())


def networks(hidden: int = 8) -> tuple[_gan.FcGenerator, _gan.FcDiscriminator]:
    with Streams(0).torch_default("networks"):
        return _gan.FcGenerator(SHAPE, 10, [hidden] * 3, 6), _gan.FcDiscriminator(SHAPE, 10, [hidden] * 3)


def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = Streams(0).torch("inputs")
    return 2 * torch.rand(count, *SHAPE, generator=rng) - 1, torch.randint(10, (count,), generator=rng)


# --- the critic's loss ----------------------------------------------------------------------------------------


def double_backward(f, gp_weight: float, x, y, fake, u) -> list[torch.Tensor]:
    """The gradient of one example's whole loss, by autograd twice: what the private step must clip."""
    between = (u * x + (1 - u) * fake).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(f(between, y).sum(), between, create_graph=True)
    loss = f(fake.detach(), y).sum() - f(x, y).sum() + gp_weight * (slope.square().sum().sqrt() - 1) ** 2
    return list(torch.autograd.grad(loss, list(f.parameters())))


def test_per_example_gradients_of_the_whole_loss_equal_a_double_backward_loop():
    g, f = networks()
    x, y = inputs(7)
    engine = PerExampleGradients(f, 1, "vmap")
    with Streams(0).torch_default("draws"):
        engine.backward(functools.partial(critic_loss, g, 10.0, engine.module), x, y)
    with Streams(0).torch_default("draws"):  # the same draws, each example its own
        fakes, u = g(torch.randn(7, 6), y), torch.rand(7, 1, 1, 1)
    rows = [[t[i : i + 1] for t in (x, y, fakes, u)] for i in range(7)]
    one_by_one, without = ([double_backward(f, weight, *row) for row in rows] for weight in (10.0, 0.0))
    for p, expected in zip(f.parameters(), zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(p.grad_sample, torch.stack(expected), rtol=1e-4, atol=1e-6)
    penalty = [a - b for a, b in zip(one_by_one[0], without[0], strict=True)]
    assert max(float(t.abs().max()) for t in penalty) > 0.1  # the penalty is a part that counts
    assert all(p.grad is None for p in g.parameters())


def test_a_critic_without_slope_has_a_finite_gradient():
    """The norm has no derivative at zero, where a dead critic stands: 0 is taken, not nan."""
    g, f = networks()
    torch.nn.init.zeros_(f.layers[-1].weight)
    x, y = inputs(3)
    with Streams(0).torch_default("draws"):
        torch.testing.assert_close(critic_loss(g, 10.0, f, x, y), torch.full((3,), 10.0))  # (0 - 1)^2, ten times
    engine = PerExampleGradients(f, 1, "vmap")
    with Streams(0).torch_default("draws"):
        engine.backward(functools.partial(critic_loss, g, 10.0, engine.module), x, y)
    assert all(torch.isfinite(p.grad_sample).all() for p in f.parameters())


def test_every_record_has_a_fake_of_its_label_and_a_weight_of_its_own():
    g, _ = networks()
    x, y = inputs(500)
    vectorised = torch.func.vmap(lambda x, y: draw_partners(g, x[None], y[None]), randomness="different")
    with Streams(0).torch_default("draws"):
        fakes, u = vectorised(x, y)
    with Streams(0).torch_default("draws"):
        latents = torch.randn(500, 6)
    torch.testing.assert_close(fakes[:, 0], g(latents, y).detach())
    assert not torch.allclose(fakes[:, 0], g(latents, (y + 1) % 10).detach())
    assert not fakes.requires_grad
    u = u.flatten()
    assert float(u.min()) >= 0
    assert float(u.max()) <= 1
    assert len(u.unique()) > 450
    assert abs(float(u.mean()) - 0.5) < 5 / math.sqrt(12 * 500)  # five standard deviations


def plain_wgan_gp(params: Params, images: ImageSet, gp_weight: float) -> _gan.FcGenerator:
    """The published loop on all records at once, in plain torch: what a run without noise and clipping must equal."""
    rng = Streams(0, "method")
    x = torch.from_numpy(images.images).float() / 127.5 - 1
    y = torch.from_numpy(images.labels)
    with rng.torch_default("init"):
        g = _gan.FcGenerator(SHAPE, 10, [params.hidden] * 3, params.latent_dim)
        f = _gan.FcDiscriminator(SHAPE, 10, [params.hidden] * 3)
        for layer in [*g.layers, *f.layers]:  # He's: uniform with variance 2 / fan-in
            bound = math.sqrt(6 / layer.in_features)
            torch.nn.init.uniform_(layer.weight, -bound, bound)
            torch.nn.init.constant_(layer.bias, 0.0)
    g_optimizer = torch.optim.Adam(g.parameters(), lr=params.g_lr, betas=(0.5, 0.9))
    f_optimizer = torch.optim.Adam(f.parameters(), lr=params.d_lr, betas=(0.5, 0.9))
    for step in range(params.dp.steps):
        fakes, u = fixed_partners(g, x, y)
        between = (u * x + (1 - u) * fakes).requires_grad_(True)
        (slopes,) = torch.autograd.grad(f(between, y).sum(), between, create_graph=True)
        penalty = ((slopes.flatten(1).square().sum(1).sqrt() - 1) ** 2).mean()
        loss = f(fakes, y).mean() - f(x, y).mean() + gp_weight * penalty
        f_optimizer.zero_grad()
        loss.backward()
        f_optimizer.step()
        if step % params.d_steps_per_g_step == params.d_steps_per_g_step - 1:
            latents, labels = _gan.draw_inputs(g, N, rng.torch("generator", step))
            g_optimizer.zero_grad()
            (-f(g(latents, labels), labels).mean()).backward()
            g_optimizer.step()
    return g


@torch.no_grad()
def fixed_partners(g, images, labels):
    return g(torch.full((len(images), g.latent_dim), 0.5), labels), torch.full((len(images), 1, 1, 1), 0.3)


@pytest.mark.parametrize("changes", [{}, {"decay": None}, {"gp_weight": 1.0}])
def test_without_noise_and_clipping_it_is_the_plain_gan(changes, images, monkeypatch):
    """Whether cut into segments or not: the optimizer goes on from one to the next."""
    monkeypatch.setattr(dp_wgan_gp, "draw_partners", fixed_partners)
    dp = {"expected_batch_size": N, "steps": 7, "max_grad_norm": 1e6, "max_physical_batch_size": 16}
    run = spec(math.inf, dp=dp, g_lr=1e-2, **changes)
    model, ledger = train(run, images, Log("test"))
    assert len(ledger.events) == (1 if "decay" in changes else 4)  # steps of a whole epoch each: 1, 0.7, 0.4, 0.35
    params = params_of(run)
    plain = plain_wgan_gp(params, images, params.gp_weight).state_dict()
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-4)
    other = plain_wgan_gp(params, images, params.gp_weight + 1.0).state_dict()
    assert max(float((other[name] - value).abs().max()) for name, value in plain.items()) > 1e-3  # it does decide


def test_it_learns_which_half_is_bright():
    """Two classes, a bright left or right half: without noise, but with a clip norm that every example exceeds, the
    fakes of each class have it too. Fakes clipped apart from their records would not learn it."""
    labels = balanced_labels(200, 2)
    shade = np.random.default_rng(0).integers(0, 60, (200, *SHAPE), np.uint8)
    bright = np.where((np.arange(8) < 4)[None, :] == (labels == 0)[:, None], 190, 0).astype(np.uint8)
    data = ImageSet(shade + bright[:, None, None, :], labels, 2)
    dp = {"expected_batch_size": 50, "steps": 400, "max_grad_norm": 0.2}
    model, _ = train(spec(math.inf, dp=dp, hidden=32, g_lr=3e-3, decay=None), data, Log("test"))
    out = model.sample(balanced_labels(100, 2), BatchSize(), Streams(0)).astype(float)
    left, right = out[..., :4].mean((1, 2, 3)), out[..., 4:].mean((1, 2, 3))
    assert ((left > right) == (balanced_labels(100, 2) == 0)).mean() > 0.9


# --- decay, plan and ledger -----------------------------------------------------------------------------------


def test_the_published_decay_at_mnist_size():
    """By hand: 256 of 60,000 records a step are 2,343.75 steps per ten epochs; a_t falls to its floor at epoch 70."""
    params = Params(dp=DpSgdParams(expected_batch_size=256, steps=20_000, max_grad_norm=0.2))
    cut = segments(params, 60_000)
    assert [s.factor for s in cut] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35])
    assert [s.start for s in cut] == [0, 2344, 4688, 7032, 9375, 11719, 14063, 16407]
    assert [s.dp.max_grad_norm for s in cut] == pytest.approx([0.2, 0.18, 0.16, 0.14, 0.12, 0.1, 0.08, 0.07])


@pytest.mark.parametrize("steps", [1, 5, 6, 12, 40])
def test_the_plan_has_one_mechanism_per_segment(steps):
    run = spec(dp={"steps": steps})
    plan = DPWGANGP().plan(params_of(run).model_copy(update={"d_steps_per_g_step": 1}), ImageMeta(N, SHAPE, 10))
    factors, lengths = [1, 0.7, 0.4, 0.35], [5, 5, 5, max(steps - 15, 0)]
    count = min(math.ceil(steps / 5), 4)
    assert [m.name for m in plan] == [f"critic/{i}" for i in range(count)]
    assert [m.noise_ratio for m in plan] == pytest.approx(factors[:count])
    assert [m.steps for m in plan][:-1] == lengths[: count - 1]
    assert sum(m.steps for m in plan) == steps
    assert all(m.sample_rate == 8 / N for m in plan)


def test_without_decay_there_is_one_mechanism():
    (mechanism,) = DPWGANGP().plan(params_of(spec(decay=None)), ImageMeta(N, SHAPE, 10))
    assert (mechanism.steps, mechanism.noise_ratio) == (12, 1.0)


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_the_calibrated_total_is_within_the_budget_under_both_accountants(epsilon):
    params = Params(dp=DpSgdParams(expected_batch_size=128, steps=400, max_grad_norm=0.2), hidden=64)
    plan = DPWGANGP().plan(params, ImageMeta(1437, SHAPE, 10))
    assert [m.noise_ratio for m in plan] == pytest.approx([1.0, 0.9, 0.8, 0.7])
    delta = 1 / (2 * 1437)
    scale = calibrate(plan, Budget(epsilon, delta), "rdp")
    events = [m.event(scale) for m in plan]
    spent = epsilon_spent(events, delta, "rdp")
    assert 0.99 * epsilon < spent <= epsilon
    assert epsilon_spent(events, delta, "prv") <= epsilon
    # Falling noise costs more than its first value all along, which a ledger with one event would claim.
    constant = [m.event(scale / m.noise_ratio) for m in plan]
    assert epsilon_spent(constant, delta, "rdp") < 0.9 * epsilon


def test_every_segment_clips_and_noises_as_its_event_says(given_noise, images, monkeypatch):
    seen, stds, clips = [], [], []
    update, noised, add_clipped = DpSgdStep.update, dpsgd.noised, dpsgd.add_clipped

    def spy(self, *arguments):
        loop = self._loop
        assert not loop._gradients.is_fast
        seen.append((loop.name, self.index, loop.declared.sensitivity, loop.declared.noise_multiplier))
        update(self, *arguments)

    monkeypatch.setattr(DpSgdStep, "update", spy)
    monkeypatch.setattr(dpsgd, "noised", lambda total, std, *a: stds.append(std) or noised(total, std, *a))
    monkeypatch.setattr(dpsgd, "add_clipped", lambda total, g, c: clips.append(c) or add_clipped(total, g, c))
    _, ledger = train(spec(), images, Log("test"))
    factors = [1.0] * 5 + [0.7] * 5 + [0.4] * 2
    assert [name for name, *_ in seen] == ["critic/0"] * 5 + ["critic/1"] * 5 + ["critic/2"] * 2
    assert [index for _, index, *_ in seen] == [*range(5), *range(5), *range(2)]
    assert [sensitivity for *_, sensitivity, _ in seen] == pytest.approx([0.5 * a for a in factors])
    first = seen[0][-1]
    assert first == 1.3
    assert [noise for *_, noise in seen] == pytest.approx([first * a for a in factors])
    assert stds == pytest.approx([first * a * 0.5 * a for a in factors])
    assert sorted(set(clips)) == pytest.approx([0.5 * a for a in (0.4, 0.7, 1.0)])
    assert [(e.name, e.steps) for e in ledger.events] == [("critic/0", 5), ("critic/1", 5), ("critic/2", 2)]
    assert [e.sensitivity for e in ledger.events] == pytest.approx([0.5, 0.35, 0.2])


def test_the_mean_gradient_really_shrinks_with_the_clip_norm(images):
    """Without noise no mean of clipped gradients is longer than the clip norm of its step."""
    decay = {"epochs": 2.0, "rate": 0.99, "floor": 0.01}
    dp = {"expected_batch_size": N, "steps": 4}
    log = Log("test")
    train(spec(math.inf, dp=dp, decay=decay), images, log)
    norms = [row["released_grad_norm"] for row in log.rows]
    assert max(norms) <= 0.5
    assert max(norms[2:]) <= 0.5 * 0.01 * 1.001
    assert min(norms[:2]) > 0.5 * 0.01


# --- what reaches whom ----------------------------------------------------------------------------------------


def test_the_generators_step_leaves_the_critic_alone(given_noise, images, monkeypatch):
    critics, moved = [], []
    view_of, step_of, backward = _gan.frozen_view, _gan.generator_step, PerExampleGradients.backward
    private = []

    def counting(self, *arguments):
        private.append(1)
        backward(self, *arguments)

    def watched(generator, *arguments):
        critic = critics[0]
        before = [p.detach().clone() for p in critic.parameters()]
        g_before = [p.detach().clone() for p in generator.parameters()]
        calls = len(private)
        step_of(generator, *arguments)
        assert all(torch.equal(p, q) for p, q in zip(critic.parameters(), before, strict=True))
        assert all(getattr(p, "grad_sample", None) is None for p in critic.parameters())
        assert len(private) == calls  # no per-example gradient was computed for nothing
        moved.append(not any(torch.equal(p, q) for p, q in zip(generator.parameters(), g_before, strict=True)))

    monkeypatch.setattr(_gan, "frozen_view", lambda f: critics.append(f) or view_of(f))
    monkeypatch.setattr(PerExampleGradients, "backward", counting)
    monkeypatch.setattr(_gan, "generator_step", watched)
    train(spec(), images, Log("test"))
    assert moved == [True] * 6  # every second of the 12 steps, whatever the segments
    assert len(private) >= 12


def test_the_generators_labels_come_from_public_streams(given_noise, images, monkeypatch):
    """Other records, other labels: the same fakes' labels, at every step, in the same numbers."""
    seen = []
    draw = _gan.draw_inputs

    def spy(generator, count, rng):
        latents, labels = draw(generator, count, rng)
        seen.append((latents, labels))
        return latents, labels

    monkeypatch.setattr(_gan, "draw_inputs", spy)
    train(spec(), images, Log("test"))
    first, seen[:] = list(seen), []
    train(spec(), ImageSet(255 - images.images, images.labels[::-1] // 2, 10), Log("test"))
    assert len(first) == len(seen) == 6  # one draw per generator step
    for (a, b), (c, d) in zip(first, seen, strict=True):
        assert len(b) == 8  # the expected batch size, never the drawn one
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert len({tuple(labels.tolist()) for _, labels in first}) == len(first)  # fresh ones at every step


def test_equal_seeds_give_equal_bytes(given_noise, images):
    first = result(*train(spec(), images, Log("test")))
    assert result(*train(spec(), images, Log("test"))) == first
    assert result(*train(spec().model_copy(update={"seed": 1}), images, Log("test")))[0] != first[0]


# --- resume ---------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def killed_and_continued(images, path, monkeypatch, at: tuple[str, int]):
    """A run that dies in step `at` and is started again: its result, curve, and the steps of the second start."""
    update, done, log = DpSgdStep.update, [], Log("test")

    def dying(self, *arguments):
        if (self._loop.name, self.index) == at:
            raise Killed
        update(self, *arguments)

    def counting(self, *arguments):
        done.append((self._loop.name, self.index))
        update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DpSgdStep, "update", dying)
        with pytest.raises(Killed):
            train(spec(), images, Log("test"), checkpoint=path, checkpoint_interval=0.0)
        patch.setattr(DpSgdStep, "update", counting)
        return result(*train(spec(), images, log, checkpoint=path)), log.rows, done


@pytest.mark.parametrize("at", [("critic/0", 3), ("critic/1", 0), ("critic/1", 3), ("critic/2", 1)])
def test_a_killed_run_ends_as_if_it_had_not_been(given_noise, images, tmp_path, monkeypatch, at):
    whole = result(*train(spec(), images, Log("test")))
    again, _, done = killed_and_continued(images, tmp_path / "checkpoint.pt", monkeypatch, at)
    assert again == whole
    steps = [(s.name, i) for s in segments(params_of(spec()), N) for i in range(s.dp.steps)]
    assert done == steps[steps.index(at) :]  # nothing is spent twice


def test_the_curve_counts_the_steps_of_all_segments(given_noise, images, tmp_path, monkeypatch):
    log = Log("test")
    train(spec(), images, log)
    assert [row["step"] for row in log.rows] == list(range(12))
    _, rows, _ = killed_and_continued(images, tmp_path / "checkpoint.pt", monkeypatch, ("critic/2", 1))
    assert rows == log.rows


def test_the_curve_of_a_run_killed_before_its_last_segment_has_no_hole(given_noise, images, tmp_path, monkeypatch):
    _, rows, _ = killed_and_continued(images, tmp_path / "checkpoint.pt", monkeypatch, ("critic/1", 3))
    assert [row["step"] for row in rows] == list(range(12))


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gp_weight": 0.0}, "greater than 0, got 0.0"),
        ({"hidden": 0}, "greater than or equal to 1, got 0"),
        ({"decay": {"floor": 0.0}}, "greater than 0, got 0.0"),
        ({"decay": {"rate": 1.0}}, "less than 1, got 1.0"),
        ({"decay": {"epoch": 5.0}}, "did you mean 'epochs'"),
    ],
)
def test_wrong_params_are_refused(params, message):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        parse_params(Params, params, "params")
    assert "\n" not in str(refused.value)


def test_what_does_not_fit_the_data_set_is_refused_before_training():
    meta = ImageMeta(N, SHAPE, 10)
    with refuses("expected_batch_size", "256", "40"):
        DPWGANGP().plan(Params(), meta)
    message = (
        "d_steps_per_g_step = 13 is more than dp.steps = 12, so the generator would never learn; choose at most 12"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        DPWGANGP().plan(params_of(spec(d_steps_per_g_step=13)), meta)


def test_any_image_size_is_served(given_noise, images):
    odd = ImageSet(np.ascontiguousarray(images.images[:, :, :5, :7].repeat(3, axis=1)), images.labels, 10)
    model, _ = train(spec(dp={"steps": 2}), odd, Log("test"))
    labels = balanced_labels(4, 10)
    out = model.sample(labels, BatchSize(), Streams(0))
    assert out.shape == (4, 3, 5, 7)
    restored = DPWGANGP.Model.from_state(torch.load(io.BytesIO(result(model, _)[0]), weights_only=True))
    assert np.array_equal(restored.sample(labels, BatchSize(), Streams(0)), out)


def test_the_defaults_are_the_published_recipe():
    published = {
        "decay": {"epochs": 10.0, "rate": 0.1, "floor": 0.35}, "gp_weight": 10.0,
        "d_steps_per_g_step": 5, "hidden": 512, "d_lr": 1e-3, "g_lr": 1e-4,
    }  # fmt: skip
    params = Params()
    assert params.model_dump().items() >= published.items()
    assert (params.dp.expected_batch_size, params.dp.max_grad_norm) == (256, 0.2)
    assert BETAS == (0.5, 0.9)
