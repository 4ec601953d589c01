"""DP teachers: what they release and charge, which images are drawn again, and that a kill costs nothing twice."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from refusals import refuses

from baselines.dpsgd_classifier import DPSGDClassifier
from dpdm import jobs
from dpdm.config import parse_study
from dpdm.data import ImageMeta, ImageSet
from dpdm.layout import Layout
from dpdm.method import departures, load_method, prepare_run, public_data, train
from dpdm.networks import BatchSize
from dpdm.plan import check_recipe
from dpdm.privacy import DpSgd, Mechanism, budget_shares, calibrate, epsilon_spent
from dpdm.privacy.accounting import Budget, audited_under, settled
from dpdm.privacy.audit import audit
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.specs import RunSpec
from dpdm.teacher import TaughtModel

DP = {"expected_batch_size": 16, "steps": 3, "max_grad_norm": 1.0}
TEACHER = {"params": {"network": "mlp", "lr": 0.5, "dp": DP}, "share": 0.25, "tries": 3}
GENERATORS = {
    "baselines.class_mean:ClassMean": {"max_image_norm": 4.0},
    "dpdm.diffusion.method:DPDM": {
        "network": {"channels": 8, "channel_mult": [1], "blocks_per_level": 1, "attention_resolutions": []},
        "noise_multiplicity": 2, "dp": DP | {"expected_batch_size": 20},
    },
}  # fmt: skip
MEANS, DPDM = GENERATORS
START = {"impl": MEANS, "params": GENERATORS[MEANS], "share": 0.1, "images": 20}
META = ImageMeta(64, (1, 8, 8), 10)


def spec(impl: str = MEANS, epsilon: float = 10.0, **params) -> RunSpec:
    return RunSpec(
        study="test", dataset="digits", method="m", impl=impl, params=GENERATORS[impl] | params, epsilon=epsilon,
        delta="1/(2n)", allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip


# --- the budget -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("impl", "params"),
    [(MEANS, {}), (DPDM, {}), (DPDM, {"init_from": [START]}), (DPDM, {"init_from": [START], "init_only": True})],
)
@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_the_teacher_costs_what_a_release_of_its_share_does(impl, params, accountant):
    run = spec(impl, teacher=TEACHER, **params).model_copy(update={"accountant": accountant})
    _, _, plan, budget = prepare_run(run, META)
    events = [m.event(calibrate(plan, budget, accountant)) for m in plan]
    (teacher,) = (event for event in events if event.name == "teacher.classifier")
    whole = calibrate([Mechanism.gaussian("whole")], budget, accountant)
    as_much = Mechanism.gaussian("as much", TEACHER["share"]).event(whole)
    assert epsilon_spent([teacher], budget.delta, accountant) == pytest.approx(
        epsilon_spent([as_much], budget.delta, accountant), rel=2e-3
    )
    spent = [epsilon_spent(events, budget.delta, name) for name in audited_under(accountant)]
    assert max(spent) <= budget.epsilon
    if not params.get("init_only"):  # the rest is spent by the generator
        assert max(spent) > 0.998 * budget.epsilon
    assert "teacher.classifier" in budget_shares(events, budget.delta)


def test_without_noise_the_teacher_has_none():
    _, _, plan, budget = prepare_run(spec(DPDM, math.inf, teacher=TEACHER), META)
    assert {m.noise_at(calibrate(plan, budget, "rdp")) for m in plan} == {0.0}


def test_shares_that_leave_nothing_are_refused():
    with refuses("teacher.classifier", "init_0", "shares"):
        prepare_run(spec(DPDM, init_from=[START], teacher=TEACHER | {"share": 0.95}), META)
    _, _, _, budget = prepare_run(spec(), META)
    alone = Mechanism.poisson("x", 16, 64, 3)
    with refuses("x", "nothing"):
        settled([alone.__class__(**vars(alone) | {"share": 0.5})], budget, "rdp")


@pytest.mark.parametrize(
    ("teacher", "parts"),
    [
        (TEACHER | {"impl": MEANS}, ["teacher", "no classifier"]),
        (TEACHER | {"params": {"network": "mlp", "dp": DP}}, ["teacher", "lr"]),
        (TEACHER | {"params": TEACHER["params"] | {"dp": DP | {"expected_batch_size": 65}}}, ["teacher", "65"]),
        (TEACHER | {"tries": 0}, ["teacher.tries", "1"]),
        (TEACHER | {"share": 1.0}, ["teacher.share"]),
    ],
)
def test_a_teacher_that_cannot_be(teacher, parts):
    with refuses(*parts):
        prepare_run(spec(teacher=teacher), META)


@pytest.mark.parametrize("impl", [MEANS, DPDM])
def test_a_teacher_learns_from_no_private_images_in_secret(impl, digits64):
    start = {"public": "digits", "training": {"dp": {"steps": 2}}}
    teacher = TEACHER | {"params": TEACHER["params"] | {"init_from": [start]}}
    method, params, *_ = prepare_run(spec(impl, teacher=teacher), META)
    assert public_data(method, params) == ("digits",)
    with refuses("digits", "private"):
        train(spec(impl, teacher=teacher), digits64, Log("test"))
    others = ImageSet(255 - digits64.images, digits64.labels, 10)
    _, ledger = train(spec(impl, teacher=teacher), others, Log("test"))
    assert ledger.public_data == ("digits",)


@pytest.mark.parametrize("impl", [MEANS, DPDM])
def test_a_teacher_that_mixes_records_is_refused_before_the_generator_trains(impl, digits64, tmp_path, monkeypatch):
    apart = DPSGDClassifier.fit

    def mixing(self, private, params, rng, log):
        loop = private.dpsgd

        def dpsgd(*args, **kwargs):
            opened = loop(*args, **kwargs)
            once = opened.module.forward
            monkeypatch.setattr(opened.module, "forward", lambda x: once(x - x.mean(0)))
            return opened

        monkeypatch.setattr(private, "dpsgd", dpsgd, raising=False)
        return apart(self, private, params, rng, log)

    monkeypatch.setattr(DPSGDClassifier, "fit", mixing)
    monkeypatch.setattr("dpdm.jobs.train_method", lambda *_: pytest.fail("it trains"))
    with refuses("m on digits", "teacher.classifier, step 0", "mixes records"):
        jobs.train(spec(impl, teacher=TEACHER), digits64, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_one_release_leaves_the_generators_noise():
    """As one of many steps does."""
    plain = [Mechanism.gaussian("prior", 0.5), Mechanism.poisson("steps", 16, 64, 3)]
    teachers = Mechanism.gaussian("teacher"), Mechanism.poisson("teacher", 16, 64, 3)
    first, second = (settled([*plain, replace(teacher, share=0.3)], Budget(1, 1e-5), "rdp") for teacher in teachers)
    assert first[0].noise_multiplier == second[0].noise_multiplier is not None
    with refuses("teacher", "1e-08", "larger"):
        settled([*plain, replace(teachers[1], share=1e-8)], Budget(0.2, 1e-5), "rdp")


def test_a_classifier_has_no_teacher():
    run = spec().model_copy(update={"impl": "baselines.dpsgd_classifier:DPSGDClassifier"})
    with refuses("teacher"):
        prepare_run(run.model_copy(update={"params": TEACHER["params"] | {"teacher": TEACHER}}), META)


def test_a_row_says_that_it_has_a_teacher():
    for params, words in (({}, ()), ({"teacher": TEACHER}, ("with a DP teacher",))):
        method, parsed, *_ = prepare_run(spec(**params), META)
        assert departures(method, parsed, META) == words
    method, parsed, *_ = prepare_run(spec(DPDM, init_from=[START], teacher=TEACHER), META)
    assert departures(method, parsed, META)[:3] == ("with a DP teacher", "warm start", "K = 2")


# --- a run ----------------------------------------------------------------------------------------------------


def test_the_generator_is_what_it_is_without_a_teacher_and_a_run_without_one_has_none(digits64):
    """With the same noise; and the ledger of a taught run is what its recipe implies."""
    plain, _ = train(spec(epsilon=math.inf), digits64, Log("test"))
    taught, ledger = train(spec(epsilon=math.inf, teacher=TEACHER), digits64, Log("test"))
    assert not isinstance(plain, TaughtModel)
    for name, value in plain.state().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(taught.model.state()[name]))
    assert [event.name for event in ledger.events] == ["class_counts", "class_sums", "teacher.classifier"]
    _, private = train(spec(teacher=TEACHER), digits64, Log("test"))
    assert check_recipe(private.to_json(), "ledger.json")
    assert audit(private.to_json(), "ledger.json")["passed"]


def test_the_curve_is_the_generators_alone(digits64):
    rows = {}
    for teacher in (None, TEACHER):
        log = Log("test")
        train(spec(DPDM, teacher=teacher), digits64, log)
        rows[teacher is None] = [row["step"] for row in log.rows]
    assert rows[True] == rows[False] == [0, 1, 2]


@pytest.mark.parametrize("impl", GENERATORS)
def test_a_saved_model_draws_the_same(impl, digits64):
    model, _ = train(spec(impl, teacher=TEACHER), digits64, Log("test"))
    file = io.BytesIO()
    torch.save(model.state(), file)
    file.seek(0)
    method, labels = load_method(impl), np.arange(10)
    sampler = method.SamplerParams.model_validate({"num_sampling_steps": 3} if impl == DPDM else {})
    again = method.Model.from_state(torch.load(file, weights_only=True))
    drawn = model.sample(labels, sampler, Streams(3))
    np.testing.assert_array_equal(again.sample(labels, sampler, Streams(3)), drawn)
    np.testing.assert_array_equal(again.sample(labels[:4], sampler, Streams(3)), drawn[:4])


def test_a_kill_in_the_teachers_training_pays_nothing_twice(digits64, tmp_path, monkeypatch):
    """And the model is that of a run that nobody killed."""
    whole, ledger = train(spec(DPDM, teacher=TEACHER), digits64, Log("test"))
    file, calls, release = tmp_path / "checkpoint.pt", [], DpSgd._release

    def dying(self, *args):
        calls.append(self.name)
        if calls.count("teacher.classifier") == 2:
            raise SystemExit(1)
        return release(self, *args)

    monkeypatch.setattr(DpSgd, "_release", dying)
    with pytest.raises(SystemExit):
        train(spec(DPDM, teacher=TEACHER), digits64, Log("test"), checkpoint=file, checkpoint_interval=0)
    assert file.exists()
    calls.clear()
    monkeypatch.setattr(DpSgd, "_release", lambda self, *args: (calls.append(self.name), release(self, *args))[1])
    resumed, again = train(spec(DPDM, teacher=TEACHER), digits64, Log("test"), checkpoint=file)
    assert calls == ["teacher.classifier"] * 2
    assert again.events == ledger.events
    for name in ("model", "teacher"):
        one, other = (getattr(model, name).network.state_dict() for model in (whole, resumed))
        assert all(torch.equal(one[key], other[key]) for key in one)


# --- which images are kept ------------------------------------------------------------------------------------


class Noise:
    """Image i is its number in every pixel: of the stream, drawn anew by every draw."""

    def sample(self, labels, sampler, rng):
        draws = rng.noise_per_image("image", 0, len(labels), (1, 2, 2))()
        return (np.abs(draws) * 1e4).astype(np.int64).astype(np.uint8)


class Parity:
    """Says the last bit of an image's first pixel."""

    family = "mlp"

    def predict(self, images):
        return images[:, 0, 0, 0].astype(np.int64) % 2


def test_of_all_draws_the_first_that_the_teacher_recognizes_is_kept():
    labels, rng = np.arange(300) % 2, Streams(5)
    first = Noise().sample(labels, BatchSize(), rng)
    assert 0.4 < (Parity().predict(first) == labels).mean() < 0.6
    shares = []
    for tries in (1, 2, 5):
        drawn = TaughtModel(Noise(), Parity(), "x:Y", tries).sample(labels, BatchSize(), rng)
        right = Parity().predict(drawn) == labels
        kept = Parity().predict(first) == labels
        np.testing.assert_array_equal(drawn[kept], first[kept])
        np.testing.assert_array_equal(drawn[~right], first[~right])
        shares.append(right.mean())
    assert shares == pytest.approx([0.5, 0.75, 1 - 0.5**5], abs=0.09)


def test_an_image_depends_on_its_label_and_its_streams_alone():
    """Whatever became of the images before it."""
    model, labels = TaughtModel(Noise(), Parity(), "x:Y", 4), np.arange(60) % 2
    whole = model.sample(labels, BatchSize(), Streams(5))
    other = np.where(np.arange(60) < 30, 1 - labels, labels)
    np.testing.assert_array_equal(model.sample(other, BatchSize(), Streams(5))[30:], whole[30:])


# --- its score ------------------------------------------------------------------------------------------------


def test_its_accuracy_on_test_images_is_scored_where_a_run_has_one(digits64, tmp_path, tiny_study_dict):
    taught = {"impl": MEANS, "params": GENERATORS[MEANS] | {"teacher": TEACHER}}
    methods = {"plain": {"impl": MEANS, "params": GENERATORS[MEANS]}, "taught": taught}
    study, layout = parse_study(tiny_study_dict | {"methods": methods}, "s"), Layout(str(tmp_path), "tiny")
    run = study.run("digits", "taught", 10.0, 0)
    jobs.train(run, digits64, layout.run(*run.place))
    (row,) = jobs._of_teacher(study, layout, run.coordinates("default"), digits64)
    model = jobs.restored(load_method(MEANS), layout.run(*run.place, "model.pt"), MEANS)
    right = (model.teacher.predict(digits64.images) == digits64.labels).mean()
    assert (row["metric"], row["direction"], row["value"]) == ("teacher_acc", "higher", pytest.approx(100 * right))
    others = [study.run("digits", "plain", 10.0, 0).coordinates("default"), *study.anchor_coordinates()]
    assert [jobs._of_teacher(study, layout, c, digits64) for c in others] == [[]] * len(others)
