"""In what a run is not the published one: the words, and what the shipped recipes get."""

from pathlib import Path

import pytest

from dpdm import departures
from dpdm.config import load_study
from dpdm.data import ImageMeta
from dpdm.explain import parse_params
from dpdm.method import departures as departures_of
from dpdm.method import load_method
from dpdm.params import Strict

CONFIG = Path(__file__).parents[2] / "config"
MNIST = ImageMeta(60_000, (1, 28, 28), 10)


class Params(Strict):
    width: int = 8
    rate: float = 0.1


@pytest.mark.parametrize(
    ("ours", "text"),
    [(100, []), (97, []), (25, ["x ÷ 4"]), (0.0137, ["x ÷ 7,300"]), (1e-5, ["x ÷ 10,000,000"]), (150, ["x × 1.5"])],  # noqa: RUF001
)
def test_a_factor_has_two_digits_and_a_small_one_is_none(ours, text):
    assert list(departures.factor("x", ours, 100)) == text


def test_only_another_side_and_changed_keys_are_said():
    assert list(departures.side(MNIST, 28, 32)) == []
    assert list(departures.side(MNIST, 32)) == ["28 px"]
    assert list(departures.changed(Params(), w="width")) == []
    assert list(departures.changed(Params(width=4, rate=0.2), w="width")) == ["w = 4"]


def of(study, dataset, method, epsilon):
    """What the run of a shipped study gets."""
    spec = load_study(CONFIG / f"{study}.yaml").run(dataset, method, epsilon, 0)
    meta = load_study(CONFIG / f"{study}.yaml").datasets[dataset].source_spec().meta()
    impl = load_method(spec.impl)
    return departures_of(impl, parse_params(impl.Params, spec.params, "params"), meta)


@pytest.mark.parametrize(
    ("run", "found"),
    [
        # the paper draws 32 x 300 noised images per training image; here 4 x 512 x 400 / 60,000 and so on
        (("paper", "mnist", "dpdm", 1), ("K = 32",)),
        (("paper", "cifar10", "dpdm", 10), ("K = 8",)),
        (("laptop", "mnist", "dpdm", 10), ("K = 4", "draws ÷ 700")),
        (("laptop", "mnist", "dpdm", 1), ("K = 4", "draws ÷ 940")),
        (("digits", "digits", "dpdm", 1), ("K = 4", "8 px", "draws ÷ 130")),
        (("one_gpu", "mnist", "dpdm", 1), ("K = 1", "draws ÷ 220")),
        (("laptop", "mnist", "dpdm_gauss", 1), ()),
        (("laptop", "mnist", "dpdm_feta_pro_at_step_0", 1), ("warm start only",)),
        (("laptop", "mnist", "pearl", 1), ()),
        (("digits", "digits", "pearl", 1), ("8 px", "k = 500")),
        (("laptop", "mnist", "dp_mepf", 1), ("EfficientNet",)),
        (("laptop", "mnist", "dpgan_r", 10), ("width = 16", "epochs ÷ 19")),
        (("laptop_gans", "mnist", "dp_sinkhorn", 10), ("width = 16", "steps ÷ 130")),
        (("paper", "mnist", "gs_wgan", 10), ()),
        (("paper", "mnist", "dp_wgan_gp", 10), ()),
        (("laptop", "mnist", "class_mean", 1), ()),
    ],
    ids=lambda value: "/".join(map(str, value)),
)
def test_the_shipped_recipes(run, found):
    assert of(*run) == found


def test_a_warm_start_is_a_departure_and_k_is_always_said():
    assert of("laptop", "mnist", "dpdm_feta", 1)[:2] == ("warm start", "K = 4")


@pytest.mark.parametrize("study", ["digits", "laptop", "laptop_gans", "one_gpu", "rivals", "paper"])
def test_a_label_is_short(study):
    spec = load_study(CONFIG / f"{study}.yaml")
    for run in spec.runs():
        assert len(", ".join(of(study, run.dataset, run.method, run.epsilon))) <= 40, run.name
