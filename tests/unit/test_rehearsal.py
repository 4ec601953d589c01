"""A run is begun on random images before anything real: what mixes records or fails is refused by `check`."""

import math

import pytest
import torch
import yaml
from refusals import refuses
from torch import nn

from dpdm.config import parse_study
from dpdm.data import ImageMeta
from dpdm.errors import UserError
from dpdm.method import NoParams
from dpdm.params import Strict
from dpdm.privacy import DpSgdParams, Mechanism
from dpdm.rehearsal import rehearse, rehearse_study
from dpdm.sources.digits import Digits

REAL_META = Digits.meta
META = ImageMeta(n=60_000, shape=(1, 8, 8), num_classes=10)


class Params(Strict):
    """What goes wrong."""

    fault: str = "none"
    dp: DpSgdParams = DpSgdParams(expected_batch_size=512, steps=10_000, max_grad_norm=1.0)


class Model:
    """Nothing is learnt."""

    def sample(self, labels, sampler, rng):
        raise AssertionError("a rehearsal ends before it samples")

    def state(self):
        return {}

    @classmethod
    def from_state(cls, state):
        return cls()


class Trial:
    """A release, a pretraining without records, then DP-SGD."""

    Params, SamplerParams, Model = Params, NoParams, Model

    def plan(self, params, meta):
        return Mechanism.gaussian("sum", 0.5), params.dp.mechanism("net", meta.n)

    def fit(self, private, params, rng, log):
        assert private.meta == META  # the public facts of the real images
        scale = math.nan if params.fault == "statistic" else 0.01
        released = private.release_sum("sum", lambda x, y: scale * x.flatten(1), 1.0)
        assert released.shape == (64,)
        for step in log.track(range(10**9), 10**9):
            assert step == 0
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        if params.fault == "layer":
            net.append(nn.BatchNorm1d(2, affine=False))
        if params.fault == "raw":
            raise KeyError("nowhere")
        dp = private.dpsgd("net", net, torch.optim.SGD(net.parameters(), lr=0.1), params.dp)
        for step in log.track(dp, len(dp)):
            step.update(lambda x, y: dp.module(x - x.mean(0) if params.fault == "loss" else x).square().sum(1))
            raise AssertionError("a rehearsal ends before a step is taken")


def study(fault: str, **method):
    return parse_study({
        "study": "trial", "epsilons": [1], "seeds": [0],
        "datasets": {"digits": {"source": "digits", "delta": "1/(2n)"}},
        "methods": {"trial": {"impl": f"{__name__}:Trial", "params": {"fault": fault}} | method},
        "evaluation": {"synthetic_images": 20, "classifiers": ["logreg"]},
    }, "trial")  # fmt: skip


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(Digits, "meta", lambda _: META)


def test_a_sound_method_passes_in_no_time_whatever_its_size():
    assert rehearse_study(study("none")) == ["trial"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("loss", "net, step 0: the loss mixes records"),
        ("layer", ".*BatchNorm1d"),
        ("statistic", "sum: a statistic is not finite"),
        ("raw", "KeyError.*nowhere"),
    ],
)
def test_what_is_wrong_is_a_sentence_that_names_the_method(fault, reason):
    with refuses("methods.trial on digits", *reason.split(".*")):
        rehearse(study(fault).runs()[0], META)


def test_a_warm_up_that_needs_hours_is_begun_only(monkeypatch):
    shards = {"shards": 10, "steps": 5, "max_block_norm": 1.0}
    recipe = {"blocks": shards, "warm_up_steps": 10**9, "width": 4, "generated_batch_size": 4, "critic_steps": 1}
    rehearse(study("", impl="baselines.gs_wgan:GSWGAN", params=recipe).runs()[0], META)


def test_every_choice_of_words_is_rehearsed_once_where_the_images_are_smallest(monkeypatch):
    tried = []
    monkeypatch.setattr("dpdm.rehearsal.rehearse", lambda spec, meta: tried.append((spec.method, spec.dataset)))
    monkeypatch.setattr(Digits, "meta", lambda source: ImageMeta(10, (1, 8, 8 if source.delta == 0.1 else 28), 10))
    content = study("none").model_dump(mode="json")
    content["datasets"] = {
        "large": {"source": "digits", "delta": 0.01, "allow_large_delta": True},
        "small": {"source": "digits", "delta": 0.1, "allow_large_delta": True},
    }
    method = content["methods"]["trial"]
    content["methods"] = {
        name: method
        | {"params": {"fault": fault, "dp": {"expected_batch_size": 8, "steps": steps, "max_grad_norm": 1.0}}}
        for name, fault, steps in (("a", "none", 3), ("b", "none", 4), ("c", "loss", 3))
    }
    assert rehearse_study(parse_study(content, "trial")) == ["a", "c"]
    assert tried == [("a", "small"), ("c", "small")]


def test_check_rehearses(run_cli, tmp_path, tiny_study_dict, monkeypatch):
    monkeypatch.setattr(Digits, "meta", REAL_META)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_study_dict))
    code, out, _ = run_cli("check", path)
    assert code == 0
    assert out.splitlines()[-1].endswith("class_mean, dpdm")

    def refuse(spec, meta):
        raise UserError(f"{spec.method} is wrong")

    monkeypatch.setattr("dpdm.rehearsal.rehearse", refuse)
    code, _, err = run_cli("check", path)
    assert code == 2
    assert "class_mean is wrong\ndpdm is wrong" in err
