"""The GANs that are built on baselines._gan: DPGANr, DP-CGAN, DP-WGAN."""

import functools
import io
import math
import re

import numpy as np
import pytest
import torch
from refusals import refuses
from torch.nn import functional as F

from baselines import _gan, dp_wgan, dpcgan, dpgan_r
from baselines.dp_wgan import DPWGAN
from baselines.dpcgan import DPCGAN
from baselines.dpgan_r import Adaptive, DPGANr, Schedule
from dpdm.artifacts import canonical_json
from dpdm.data import ImageMeta, ImageSet, balanced_labels
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.method import run_fingerprint, train
from dpdm.networks import BatchSize
from dpdm.privacy import DpSgdParams, Randomness, door
from dpdm.privacy.dpsgd import DpSgdStep
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.specs import RunSpec

METHODS = {"dpgan_r": DPGANr, "dpcgan": DPCGAN, "dp_wgan": DPWGAN}
SMALL = {"width": 4, "latent_dim": 8, "d_steps_per_g_step": 2}
N = 40


@pytest.fixture(scope="module", autouse=True)
def calibrated_once():
    """Nearly all runs here have one plan and one budget, and finding the noise takes longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door, "calibrate", functools.cache(door.calibrate))
        yield


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (N, 1, 8, 8), np.uint8), np.arange(N) % 10, 10)


def spec(method: str, epsilon: float = 5.0, **params) -> RunSpec:
    dp = {"expected_batch_size": 8, "steps": 8, "max_grad_norm": 1.0} | params.pop("dp", {})
    return RunSpec(
        study="s", dataset="d", method=method, impl=f"baselines.{method}:{METHODS[method].__name__}",
        params=SMALL | {"dp": dp} | params, epsilon=epsilon, delta="1/(2n)", allow_large_delta=False,
        accountant="rdp", seed=0,
    )  # fmt: skip


def result(model, ledger) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    torch.save(model.state(), buffer)
    return buffer.getvalue(), canonical_json(ledger.to_json())


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- networks -------------------------------------------------------------------------------------------------


def test_the_networks_have_the_published_sizes():
    shape = (1, 28, 28)
    assert count(_gan.ConvDiscriminator(shape, 10, 128)) == 1_724_289
    assert count(_gan.ConvGenerator(shape, 10, 128, 128)) == 2_272_129
    assert count(_gan.FcDiscriminator(shape, 10, [128])) == 794 * 128 + 128 + 128 + 1
    assert count(_gan.FcGenerator(shape, 10, [128], 100)) == 110 * 128 + 128 + 128 * 784 + 784


@pytest.mark.parametrize("side", _gan.LEVELS)
@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 2), (1, 1)])
def test_networks_serve_every_size(side, channels, classes):
    shape = (channels, side, side)
    generator = _gan.ConvGenerator(shape, classes, 4, 8)
    images, labels = _gan.draw_fakes(generator, 5, Streams(0).torch("fakes"))
    assert images.shape == (5, *shape)
    assert float(images.abs().max()) <= 1
    assert _gan.ConvDiscriminator(shape, classes, 4)(images, labels).shape == (5,)


@pytest.mark.parametrize("side", _gan.LEVELS)
def test_the_small_label_map_stands_for_the_whole_one(side):
    """The discriminator's shortcut against a convolution of the full label map, as published, with gradients."""
    d = _gan.ConvDiscriminator((1, side, side), 10, 8).double()
    labels = torch.arange(10)
    maps = F.one_hot(labels, 10).double()[:, :, None, None].expand(-1, -1, side, side)
    whole = F.conv2d(maps, d.label.weight, d.label.bias, stride=2, padding=1)
    small = d.label(maps[:, :, :6, :6]).index_select(2, d.spread).index_select(3, d.spread)
    torch.testing.assert_close(small, whole)
    weights = torch.randn(whole.shape, dtype=torch.float64, generator=Streams(0).torch("weights"))
    for parameter in d.label.parameters():
        (a,) = torch.autograd.grad((small * weights).sum(), parameter, retain_graph=True)
        (b,) = torch.autograd.grad((whole * weights).sum(), parameter, retain_graph=True)
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", ["conv", "fc"])
def test_both_networks_look_at_their_label(make):
    shape, labels = (1, 8, 8), torch.tensor([0, 1])
    with Streams(0).torch_default("init"):
        if make == "conv":
            g, d = _gan.ConvGenerator(shape, 10, 4, 8), _gan.ConvDiscriminator(shape, 10, 4)
        else:
            g, d = _gan.FcGenerator(shape, 10, [16], 8), _gan.FcDiscriminator(shape, 10, [16])
    images = g(torch.ones(2, 8), labels)
    assert not torch.equal(images[0], images[1])
    numbers = d(images[:1].expand(2, -1, -1, -1), labels)
    assert numbers[0] != numbers[1]


# --- what reaches whom ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_generators_labels_come_from_public_streams(method, images, monkeypatch):
    """Other records, other labels: the same fakes' labels, at every step, in the same numbers."""
    seen = []
    draw = _gan.draw_inputs

    def spy(generator, count, rng):
        latents, labels = draw(generator, count, rng)
        seen.append((latents, labels))
        return latents, labels

    monkeypatch.setattr(_gan, "draw_inputs", spy)
    train(spec(method), images, Log("test"))
    first, seen[:] = list(seen), []
    train(spec(method), ImageSet(255 - images.images, images.labels[::-1] // 2, 10), Log("test"))
    # One draw per D step, one per G step; a critic of pairs draws no labels, its fakes bear their records'.
    assert len(first) == len(seen) == (4 if method == "dp_wgan" else 8 + 4)
    for (a, b), (c, d) in zip(first, seen, strict=True):
        assert len(b) == 8  # the expected batch size, never the drawn one
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert len({tuple(labels.tolist()) for _, labels in first}) == len(first)  # fresh ones every time


def test_labels_of_fakes_are_uniform():
    generator = _gan.FcGenerator((1, 8, 8), 10, [4], 2)
    _, labels = _gan.draw_fakes(generator, 10_000, Streams(0).torch("fakes"))
    counts = torch.bincount(labels, minlength=10)
    assert counts.sum() == 10_000
    assert float((counts - 1000).abs().max()) < 5 * math.sqrt(900)  # five standard deviations


def test_the_generators_step_cannot_touch_the_discriminator():
    with Streams(0).torch_default("init"):
        g = _gan.ConvGenerator((1, 8, 8), 10, 4, 8)
        d = _gan.ConvDiscriminator((1, 8, 8), 10, 4)
    view = _gan.frozen_view(d)
    gradients = PerExampleGradients(d)
    before = {name: value.clone() for name, value in d.state_dict().items()}
    g_before = [p.clone() for p in g.parameters()]
    optimizer = torch.optim.Adam(g.parameters(), lr=1e-2)
    for _ in range(2):
        _gan.generator_step(g, optimizer, view, lambda x: F.softplus(-x), 6, Streams(0).torch("generator"))
    assert all(torch.equal(value, before[name]) for name, value in d.state_dict().items())
    assert all(p.grad is None and getattr(p, "grad_sample", None) is None for p in d.parameters())
    assert all(p.grad is None for p in view.parameters())
    assert gradients._forwards == []  # the private machinery never saw a forward pass
    assert not any(torch.equal(p, q) for p, q in zip(g.parameters(), g_before, strict=True))


def test_the_frozen_view_follows_the_discriminator():
    d = _gan.ConvDiscriminator((1, 8, 8), 10, 4)
    view = _gan.frozen_view(d)
    optimizer = torch.optim.Adam(d.parameters())
    images, labels = torch.zeros(3, 1, 8, 8), torch.arange(3)
    first = view(images, labels)
    d(images, labels).sum().backward()
    optimizer.step()
    assert torch.equal(view(images, labels), d(images, labels))
    assert not torch.equal(view(images, labels), first)
    d.load_state_dict(_gan.ConvDiscriminator((1, 8, 8), 10, 4).state_dict())  # as a checkpoint does
    assert torch.equal(view(images, labels), d(images, labels))


# --- the training loops, against plain ones -------------------------------------------------------------------


def plain_gan(method: str, fingerprint: str, params, images: ImageSet):
    """The published loop on all records at once, in plain torch: what a run without noise and clipping must equal."""
    rng, classes = Streams(0, "method"), images.num_classes
    x = torch.from_numpy(images.images).float() / 127.5 - 1
    y = torch.from_numpy(images.labels)
    with rng.torch_default("init"):
        if method == "dpcgan":
            g = _gan.FcGenerator(x.shape[1:], classes, [params.width], params.latent_dim)
            d = _gan.FcDiscriminator(x.shape[1:], classes, [params.width])
        else:
            g = _gan.ConvGenerator(x.shape[1:], classes, params.width, params.latent_dim)
            d = _gan.ConvDiscriminator(x.shape[1:], classes, params.width)
    if method == "dpgan_r":
        optimizers = [torch.optim.Adam(net.parameters(), lr=params.lr, betas=(0.5, 0.999)) for net in (g, d)]
    elif method == "dpcgan":
        optimizers = [torch.optim.Adam(g.parameters(), lr=params.g_lr), torch.optim.SGD(d.parameters(), lr=1.0)]
    else:
        optimizers = [torch.optim.RMSprop(net.parameters(), lr=params.lr) for net in (g, d)]
    bce = F.binary_cross_entropy_with_logits
    for step in range(params.dp.steps):
        if method == "dp_wgan":  # a fake of each record's label, drawn for each chunk of the batch
            private = Randomness.repeatable(0, fingerprint).scoped("critic")
            labels, chunks = y, []
            for number, part in enumerate(y.split(16)):
                with private.torch_default("private", step, number):
                    chunks.append(torch.randn(len(part), params.latent_dim))
            fakes = g(torch.cat(chunks), y).detach()
        else:
            fakes, labels = _gan.draw_fakes(g, len(x), rng.torch("fakes", step))
        real, fake = d(x, y), d(fakes, labels)
        if method == "dp_wgan":
            loss = (fake.mean() - real.mean()) / 2
        else:
            loss = (bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))) / 2
        if method == "dpcgan":
            share = step / (params.dp.steps - 1)
            loss = loss * 2 * ((1 - share) * params.d_lr_start + share * params.d_lr_end)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        if method == "dp_wgan":
            with torch.no_grad():
                for p in d.parameters():
                    p.copy_(p.clip(-params.weight_clip, params.weight_clip))
        if step % params.d_steps_per_g_step == params.d_steps_per_g_step - 1:
            latents, labels = _gan.draw_inputs(g, len(x), rng.torch("generator", step))
            said = d(g(latents, labels), labels)
            loss = -said.mean() if method == "dp_wgan" else bce(said, torch.ones_like(said))
            optimizers[0].zero_grad()
            loss.backward()
            optimizers[0].step()
    return g


@pytest.mark.parametrize("method", METHODS)
def test_without_noise_and_clipping_it_is_the_plain_gan(method, images):
    rate = {"dpgan_r": {"lr": 1e-2}, "dpcgan": {"g_lr": 1e-2}, "dp_wgan": {"lr": 1e-3, "weight_clip": 0.05}}[method]
    dp = {"expected_batch_size": N, "steps": 7, "max_grad_norm": 1e6, "max_physical_batch_size": 16}
    run = spec(method, math.inf, dp=dp, **rate)
    model, _ = train(run, images, Log("test"))
    params = parse_params(METHODS[method].Params, run.params, "params")
    plain = plain_gan(method, run_fingerprint(run, images), params, images).state_dict()
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-4)
    with Streams(0, "method").torch_default("init"):
        untrained = model.build(**model.facts).state_dict()
    assert max(float((untrained[name] - value).abs().max()) for name, value in plain.items()) > 2e-3  # it did move


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_gan_learns_which_half_is_bright(method):
    """Two classes, a bright left or right half: without noise, the fakes of each class have it too."""
    labels = balanced_labels(200, 2)
    shade = np.random.default_rng(0).integers(0, 60, (200, 1, 8, 8), np.uint8)
    bright = np.where((np.arange(8) < 4)[None, :] == (labels == 0)[:, None], 190, 0).astype(np.uint8)
    images = ImageSet(shade + bright[:, None, None, :], labels, 2)
    steps, changes = {
        "dpgan_r": (250, {"lr": 2e-3, "width": 8}),
        "dpcgan": (1000, {"width": 32, "g_lr": 3e-3}),
        "dp_wgan": (250, {"lr": 1e-3, "width": 8, "weight_clip": 0.1}),
    }[method]
    dp = {"expected_batch_size": 50, "steps": steps, "max_grad_norm": 10.0}
    model, _ = train(spec(method, math.inf, dp=dp, d_steps_per_g_step=1, **changes), images, Log("test"))
    out = model.sample(balanced_labels(100, 2), BatchSize(), Streams(0)).astype(float)
    left, right = out[..., :4].mean((1, 2, 3)), out[..., 4:].mean((1, 2, 3))
    of_class_0 = balanced_labels(100, 2) == 0
    assert ((left > right) == of_class_0).mean() > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_give_equal_bytes(method, images):
    first = result(*train(spec(method), images, Log("test")))
    assert result(*train(spec(method), images, Log("test"))) == first
    assert result(*train(spec(method).model_copy(update={"seed": 1}), images, Log("test")))[0] != first[0]


@pytest.mark.parametrize("method", METHODS)
def test_state_round_trip_and_one_class(method, images):
    unconditional = ImageSet(images.images, np.zeros(N, np.int64), 1)
    model, _ = train(spec(method), unconditional, Log("test"))
    buffer = io.BytesIO(result(model, _)[0])
    restored = METHODS[method].Model.from_state(torch.load(buffer, weights_only=True))
    labels = np.zeros(7, np.int64)
    out = model.sample(labels, BatchSize(), Streams(0))
    assert out.shape == (7, 1, 8, 8)
    assert np.array_equal(restored.sample(labels, BatchSize(), Streams(0)), out)
    assert model.sample(labels[:0], BatchSize(), Streams(0)).shape == (0, 1, 8, 8)


# --- DPGANr: how many D steps per G step ----------------------------------------------------------------------


class Curve(Log):
    """Keeps n_D of every row."""

    @property
    def n_d(self) -> list[int]:
        return [row["d_steps_per_g_step"] for row in self.rows]


def turns(schedule: Schedule, accuracies: list[float]) -> list[int]:
    """D steps before each G step, when D has these accuracies."""
    out = []
    for accuracy in accuracies:
        d_steps = 1
        while not schedule.d_step_done():
            d_steps += 1
        out.append(d_steps)
        schedule.g_step_done(accuracy)
    return out


def test_a_fixed_schedule_never_changes():
    assert turns(Schedule(3), [0.0] * 50) == [3] * 50


def test_the_ladder_is_climbed_by_the_rule():
    """By hand: average a <- a / 2 + accuracy / 2, patience 2, threshold 0.5."""
    rule = Adaptive(threshold=0.5, ladder=(1, 4, 9), ema_decay=0.5, patience=2)
    schedule = Schedule(1, rule)
    #            average 1     1     .5 (2 taken: up)    .25, .125 (2 taken: up)     stays at the top
    assert turns(schedule, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]) == [1, 1, 1, 4, 4, 9, 9, 9]


def test_a_good_discriminator_is_left_alone():
    rule = Adaptive(threshold=0.5, ema_decay=0.5, patience=0)
    assert turns(Schedule(1, rule), [0.6] * 30) == [1] * 30
    assert turns(Schedule(1, rule), [1.0, 0.0, 0.0])[-1] == 2  # averages 1, 1/2: at the threshold it climbs


def test_patience_is_of_every_rung():
    rule = Adaptive(threshold=1.0, patience=200)
    climbs = np.flatnonzero(np.diff(turns(Schedule(1, rule), [0.5] * 700)))
    assert climbs.tolist() == [200, 400, 600]
    assert turns(Schedule(1, rule), [0.5] * 700)[-1] == 10


def test_a_schedule_starts_between_rungs():
    rule = Adaptive(threshold=1.0, patience=0, ladder=(1, 2, 5, 10))
    assert turns(Schedule(3, rule), [0.0] * 3) == [3, 5, 10]


@pytest.mark.parametrize("taken", [0, 1, 4, 6])
def test_a_schedule_continues_from_its_state(taken):
    rule = Adaptive(threshold=0.6, ladder=(1, 2, 5), patience=1, ema_decay=0.5)
    accuracies = [0.9, 0.3, 0.7, 0.2, 0.9, 0.1, 0.5, 0.5]
    whole = turns(Schedule(1, rule), accuracies)
    first, second = Schedule(1, rule), Schedule(1, rule)
    turns(first, accuracies[:taken])
    second.load_state_dict(first.state_dict())
    assert turns(second, accuracies[taken:]) == whole[taken:]
    assert len(set(whole)) > 1


def test_the_curve_shows_how_n_d_climbs(images):
    log = Curve("test")
    rule = {"threshold": 1.0, "patience": 0, "ladder": [1, 2, 4]}
    train(spec("dpgan_r", d_steps_per_g_step=1, adaptive=rule), images, log)
    assert log.n_d == [1, 2, 2, 4, 4, 4, 4, 4]


def test_the_generators_step_reports_accuracy_before_it_moves():
    g = _gan.FcGenerator((1, 8, 8), 10, [8], 4)
    d = _gan.FcDiscriminator((1, 8, 8), 10, [8])
    stream = Streams(0)
    fakes, labels = _gan.draw_fakes(g, 16, stream.torch("generator", 3))
    expected = d(fakes, labels)
    optimizer = torch.optim.SGD(g.parameters(), lr=10.0)
    said = _gan.generator_step(g, optimizer, _gan.frozen_view(d), torch.neg, 16, stream.torch("generator", 3))
    torch.testing.assert_close(said, expected.detach())
    after, _ = _gan.draw_fakes(g, 16, stream.torch("generator", 3))
    assert float(d(after, labels).detach().mean()) > float(said.mean())  # it moved towards what D calls real


# --- resume ---------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


CLIMBING = {"d_steps_per_g_step": 1, "adaptive": {"threshold": 1.0, "patience": 1, "ladder": [1, 2, 3]}}


@pytest.mark.parametrize("step", [3, 6, 11])
@pytest.mark.parametrize(("method", "params"), [("dpgan_r", CLIMBING), ("dpcgan", {}), ("dp_wgan", {})])
def test_a_killed_run_ends_as_if_it_had_not_been(method, params, step, images, tmp_path, monkeypatch, capsys):
    run = spec(method, dp={"steps": 14}, **params)
    log = Log("test")
    whole = result(*train(run, images, log))
    update = DpSgdStep.update

    def dying(self, *arguments):
        if self.index == step:
            raise Killed
        update(self, *arguments)

    path = tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patch:
        patch.setattr(DpSgdStep, "update", dying)
        with pytest.raises(Killed):
            train(run, images, Log("test"), checkpoint=path, checkpoint_interval=0.0)
    again = Log("test")
    assert result(*train(run, images, again, checkpoint=path)) == whole
    assert again.rows == log.rows
    assert f"resumed at step {step} of 14" in capsys.readouterr().err
    if method == "dpgan_r":  # the schedule was cut in the middle of its climb
        assert len({row["d_steps_per_g_step"] for row in log.rows}) == 3


# --- DP-CGAN, DP-WGAN -----------------------------------------------------------------------------------------


def test_the_learning_rate_of_dpcgan_falls_linearly(images, monkeypatch):
    params = dpcgan.Params(dp=DpSgdParams(expected_batch_size=600, steps=101, max_grad_norm=1.1))
    assert [params.d_lr(step) for step in (0, 50, 100)] == pytest.approx([0.1, 0.076, 0.052])
    assert [dpcgan.Params().d_lr(step) for step in (0, 9_999, 34_999)] == pytest.approx([0.1, 0.052, 0.052])
    used = []
    step = torch.optim.SGD.step

    def spy(self, *arguments):
        used.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    train(spec("dpcgan", dp={"steps": 4}), images, Log("test"))
    assert used == pytest.approx([0.2, 0.168, 0.136, 0.104])  # doubled: the door's mean is over 2B rows


def test_dpcgan_takes_one_step_too():
    assert dpcgan.Params(dp=DpSgdParams(expected_batch_size=1, steps=1, max_grad_norm=1.0)).d_lr(0) == 0.1


def test_the_weights_of_dp_wgan_are_clipped_after_every_step(images, monkeypatch):
    critics, largest = [], []
    view_of = _gan.frozen_view
    monkeypatch.setattr(_gan, "frozen_view", lambda f: critics.append(f) or view_of(f))

    class Watch(Log):
        def record(self, step, **released):  # called once per step, after the weights were cut
            largest.append(max(float(p.detach().abs().max()) for p in critics[0].parameters()))

    train(spec("dp_wgan", lr=0.1, weight_clip=0.03), images, Watch("test"))
    assert len(largest) == 8
    assert largest == pytest.approx([0.03] * 8)  # a rate of 0.1 sends some weight past the bound at every step


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpgan_r", "dp_wgan"])
@pytest.mark.parametrize("shape", [(1, 10, 10), (1, 28, 32), (3, 64, 64)])
def test_a_wrong_image_size_is_refused_before_training(method, shape):
    cls = METHODS[method]
    params = cls.Params()
    with refuses("8, 16, 28 or 32", f"{shape[1]}x{shape[2]}"):
        cls().plan(params, ImageMeta(60_000, shape, 10))
    assert cls().plan(params, ImageMeta(60_000, (1, 28, 28), 10))


def test_fully_connected_networks_serve_any_size():
    assert DPCGAN().plan(dpcgan.Params(), ImageMeta(60_000, (1, 10, 12), 10))


@pytest.mark.parametrize("method", METHODS)
def test_a_generator_that_would_never_step_is_refused(method):
    params = parse_params(METHODS[method].Params, spec(method).params | {"d_steps_per_g_step": 9}, "params")
    message = "d_steps_per_g_step = 9 is more than dp.steps = 8, so the generator would never learn; choose at most 8"
    with pytest.raises(UserError, match=re.escape(message)):
        METHODS[method]().plan(params, ImageMeta(N, (1, 8, 8), 10))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"adaptive": {"threshold": 0.6}}, "adaptive needs d_steps_per_g_step, where it starts; the paper's is 1"),
        ({"d_steps_per_g_step": 1, "adaptive": {"threshold": 0.6, "ladder": [1, 5, 5]}}, "must rise from rung to rung"),
        ({"d_steps_per_g_step": 1, "adaptive": {"threshold": 60.0}}, "less than or equal to 1, got 60.0"),
        ({"d_steps_per_g_step": 1, "adaptive": {"treshold": 0.6}}, "did you mean 'threshold'"),
    ],
)
def test_a_wrong_schedule_is_refused(params, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_params(dpgan_r.Params, params, "params")


def test_the_defaults_are_the_published_recipes():
    assert dpgan_r.Params().model_dump() == {
        "dp": {"expected_batch_size": 128, "steps": 450_000, "max_grad_norm": 1.0, "max_physical_batch_size": 512},
        "d_steps_per_g_step": 50, "adaptive": None, "width": 128, "latent_dim": 128, "lr": 2e-4,
    }  # fmt: skip
    adaptive = dpgan_r.Params(d_steps_per_g_step=1, adaptive={"threshold": 0.6}).adaptive
    assert (adaptive.ladder[:4], adaptive.ladder[-1], len(adaptive.ladder)) == ((1, 2, 5, 10), 5000, 12)
    assert (adaptive.ema_decay, adaptive.patience) == (0.99, 200)
    assert dp_wgan.Params().weight_clip == dp_wgan.Params().dp.max_grad_norm == 0.01
