"""DPSGDClassifier: the published networks, inputs by public constants, and what it learns from digits and noise."""

import math
import warnings

import numpy as np
import pytest
import torch
from refusals import refuses
from torch import nn

from baselines.dpsgd_classifier import FAMILIES, NETWORKS, SMALLEST_SIDE, Dropout, Model, ModelParams, standardise
from dpdm.data import ImageMeta, ImageSet, to_network
from dpdm.errors import UserError
from dpdm.evaluation.registry import CLASSIFIERS
from dpdm.explain import parse_params
from dpdm.method import load_method, prepare_run, train
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.sources.digits import Digits
from dpdm.specs import RunSpec

MNIST, DIGITS = (1, 28, 28), (1, 8, 8)


def spec(network="logreg", epsilon=math.inf, steps=200, batch=128, lr=1.0, clip=1.0, **changes) -> RunSpec:
    dp = {"expected_batch_size": batch, "steps": steps, "max_grad_norm": clip, "max_physical_batch_size": 256}
    return RunSpec(
        study="s", dataset="d", method="m", impl="baselines.dpsgd_classifier:DPSGDClassifier", epsilon=epsilon,
        params={"network": network, "lr": lr, "dp": dp} | changes, delta="1/(2n)", allow_large_delta=False,
        accountant="rdp", seed=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


def accuracy(model: Model, test: ImageSet) -> float:
    return 100 * float((model.predict(test.images) == test.labels).mean())


def sizes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in network.parameters()]


# --- networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"), [("logreg", 7_850), ("mlp", 79_510), ("cnn", 241_546), ("tanh_cnn", 26_010)]
)
def test_parameter_counts_are_the_published_ones(name, parameters):
    assert sum(p.numel() for p in NETWORKS[name](MNIST, 10).parameters()) == parameters


def test_the_small_tanh_cnn():
    assert sum(p.numel() for p in NETWORKS["tanh_cnn"](DIGITS, 10).parameters()) == 9_258


def test_the_other_families_are_those_of_the_judges():
    assert set(FAMILIES.values()) == set(CLASSIFIERS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_size_of_image_is_served_or_refused_before_training(name):
    for side in (1, 3, 4, 5, 6, 7, 8, 9, 17, 18, 19, 28, 32):
        shape = (2, side, side + 1)
        run = spec(name, batch=4)
        if side < SMALLEST_SIDE.get(name, 0):
            with refuses(name, SMALLEST_SIDE[name]):
                prepare_run(run, ImageMeta(64, shape, 7))
        else:
            prepare_run(run, ImageMeta(64, shape, 7))
            assert NETWORKS[name](shape, 7).eval()(torch.zeros(3, *shape)).shape == (3, 7)


def test_unlabelled_images_are_refused_before_training():
    with refuses("m on d", "two classes"):
        prepare_run(spec(batch=4), ImageMeta(64, DIGITS, 1))


def test_dropout_is_torchs_with_masks_from_the_default_generator():
    layer, x = Dropout(), torch.randn(400, 50)
    torch.manual_seed(5)
    out = layer(x)
    kept = out != 0
    assert torch.equal(out[kept], 2 * x[kept])
    assert abs(kept.float().mean() - 0.5) < 0.02
    assert not torch.equal(layer(x), out)
    torch.manual_seed(5)
    assert torch.equal(layer(x), out)
    assert torch.equal(layer.eval()(x), x)


# --- training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_per_example_gradients_take_the_fast_path(name, digits64):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the fallback warns
        train(spec(name, steps=1, batch=16), digits64, Log())


@pytest.mark.parametrize(
    ("name", "lr", "least"), [("logreg", 1.0, 88), ("mlp", 0.5, 88), ("cnn", 1.0, 60), ("tanh_cnn", 1.0, 88)]
)
def test_without_noise_it_learns_digits(name, lr, least, digits):
    """60 small steps; the dropout of the cnn makes it slow."""
    model, ledger = train(spec(name, lr=lr, steps=60, batch=64), digits["train"], Log())
    assert accuracy(model, digits["test"]) >= least
    assert ledger.events[0].noise_multiplier == 0


def test_with_noise_it_learns_less(digits):
    """The accuracy at epsilon = 1 is between a guess's and that without noise: noise there is, and it is not all."""
    found = [accuracy(train(spec(epsilon=e, lr=0.5), digits["train"], Log())[0], digits["test"]) for e in (0.01, 1.0)]
    open_ = accuracy(train(spec(lr=0.5), digits["train"], Log())[0], digits["test"])
    assert found[0] + 20 < found[1] + 3 < open_
    assert found[1] > 50


def test_a_step_is_clipped_mean_gradient_descent_by_hand(digits64):
    """One step without noise on all records, against the formula."""
    run = spec("logreg", steps=1, batch=64, lr=0.7, clip=0.3, input_mean=0.2, input_std=0.4, momentum=0.5)
    model, _ = train(run, digits64, Log())
    with Streams(0, "method").torch_default("init"):
        network = NETWORKS["logreg"](DIGITS, 10)
    weight, bias = (p.detach().clone().requires_grad_() for p in network.parameters())
    x = (torch.from_numpy(digits64.images / 255.0).float().flatten(1) - 0.2) / 0.4
    total = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for row, label in zip(x, torch.from_numpy(digits64.labels), strict=True):
        loss = -torch.log_softmax(weight @ row + bias, 0)[label]
        gradient = torch.autograd.grad(loss, [weight, bias])
        norm = torch.cat([g.flatten() for g in gradient]).norm()
        total = [t + g * min(1, 0.3 / norm) for t, g in zip(total, gradient, strict=True)]
    for ours, start, gradient in zip(model.network.parameters(), (weight, bias), total, strict=True):
        torch.testing.assert_close(ours.detach(), (start - 0.7 * gradient / 64).detach())


def test_inputs_are_standardised_by_the_constants_given():
    images = np.array([[[[0, 51], [102, 255]]]], np.uint8)
    params = ModelParams(network="logreg", input_mean=0.2, input_std=0.5)
    expected = (torch.tensor([[[[0.0, 0.2], [0.4, 1.0]]]]) - 0.2) / 0.5
    torch.testing.assert_close(standardise(to_network(images), params), expected)
    same = standardise(to_network(images), ModelParams(network="logreg"))
    torch.testing.assert_close(same, to_network(images))


def test_momentum_and_dropout_survive_a_kill(digits64, tmp_path, capsys):
    """A run that is stopped after two of four steps ends bit for bit like one that is not."""
    run = spec("cnn", steps=4, batch=16, lr=0.1)
    whole, _ = train(run, digits64, Log())

    class StopError(Exception):
        pass

    class StopAfterTwo(Log):
        def record(self, step, **released):
            super().record(step, **released)
            if step == 2:
                raise StopError

    with pytest.raises(StopError):
        train(run, digits64, StopAfterTwo(), checkpoint=tmp_path / "c.pt", checkpoint_interval=0.0)
    assert (tmp_path / "c.pt").exists()
    log = Log()
    resumed, ledger = train(run, digits64, log, checkpoint=tmp_path / "c.pt")
    assert "resumed at step 2 of 4" in capsys.readouterr().err
    assert ledger.events[0].steps == 4
    assert [row["step"] for row in log.rows] == [0, 1, 2, 3]
    for one, two in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, two)


# --- the model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_says_which_column_it_fills(name, digits64):
    model, _ = train(spec(name, steps=1, batch=16), digits64, Log())
    assert model.family == name.removeprefix("tanh_")
    assert not model.network.training


def test_predict_is_the_largest_logit_over_several_chunks(monkeypatch, digits64):
    monkeypatch.setattr("baselines.dpsgd_classifier.CHUNK", 7)
    model, _ = train(spec("mlp", steps=2, batch=16), digits64, Log())
    logits = model.network(to_network(digits64.images))
    assert np.array_equal(model.predict(digits64.images), logits.argmax(1).numpy())


# --- params ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"network": "resnet"}, "network: Input should be 'logreg', 'mlp', 'cnn' or 'tanh_cnn'"),
        ({"lr": 0}, "lr: Input should be greater than 0"),
        ({"momentum": 1.0}, "momentum: Input should be less than 1"),
        ({"input_std": 0.0}, "input_std: Input should be greater than 0"),
        ({"optimiser": "sgd"}, "optimiser: unknown key"),
    ],
)
def test_wrong_params_are_named(change, part):
    params = load_method(spec().impl).Params
    with pytest.raises(UserError) as error:
        parse_params(params, spec().params | change, "methods.m.params")
    assert part in str(error.value)
