"""Warm starts: what they release and charge, that DP-SGD goes on from them, and that a kill costs nothing twice."""

import numpy as np
import pytest
import torch
from refusals import refuses

from baselines import _kernel
from baselines.class_mean import ClassMean
from dpdm import jobs, warm
from dpdm.data import ImageMeta, ImageSet
from dpdm.diffusion.gauss import DPDMGauss
from dpdm.errors import UserError
from dpdm.method import load_method, prepare_run, public_data, train
from dpdm.plan import check_recipe
from dpdm.privacy import DpSgd, Ledger, Mechanism, PrivateData, Randomness, budget_shares, calibrate
from dpdm.privacy.accounting import Budget
from dpdm.privacy.audit import audit
from dpdm.progress import Log
from dpdm.rehearsal import rehearse
from dpdm.sources.digits import Digits
from dpdm.specs import RunSpec

DP = {"expected_batch_size": 16, "steps": 3, "max_grad_norm": 1.0}
METHODS = {
    "dpdm.diffusion.method:DPDM": {
        "network": {"channels": 8, "channel_mult": [1], "blocks_per_level": 1, "attention_resolutions": []},
        "noise_multiplicity": 2, "lr": 1e-2, "ema_decay": 0.0, "dp": DP,
    },
    "baselines.dpgan_r:DPGANr": {"width": 8, "latent_dim": 4, "d_steps_per_g_step": 1, "lr": 1e-2, "dp": DP},
    "baselines.dp_wgan_gp:DPWGANGP": {"hidden": 8, "latent_dim": 4, "d_steps_per_g_step": 1, "dp": DP},
    "baselines.dpsgd_classifier:DPSGDClassifier": {"network": "mlp", "lr": 0.5, "dp": DP},
}  # fmt: skip
DPDM, GAN, _, CLASSIFIER = METHODS
GAUSS = "dpdm.diffusion.gauss:DPDMGauss"
METHODS[GAUSS] = METHODS[DPDM] | {
    "prior": {"max_image_norm": 4.0, "max_centered_norm": 3.0, "max_component_norm": 2.5}, "prior_share": 0.5,
}  # fmt: skip
CLASSIFIER_OF_64 = METHODS[CLASSIFIER]
MEANS = {
    "impl": "baselines.class_mean:ClassMean", "params": {"max_image_norm": 4.0}, "share": 0.1, "images": 20,
    "training": {"dp": {"steps": 4, "expected_batch_size": 8}},
}  # fmt: skip
MERF = {
    "impl": "baselines.dp_merf:DPMERF", "share": 0.2, "images": 20,
    "params": {"num_frequencies": 20, "squared_length_scale": 4.0, "steps": 5, "generated_batch_size": 10},
    "training": {"dp": {"steps": 4, "expected_batch_size": 8}},
}  # fmt: skip
META = ImageMeta(64, (1, 8, 8), 10)


def spec(impl: str = DPDM, epsilon: float = 10.0, **params) -> RunSpec:
    return RunSpec(
        study="test", dataset="digits", method="m", impl=impl, params=METHODS.get(impl, {}) | params, epsilon=epsilon,
        delta="1/(2n)", allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def distance(one: dict, other: dict) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one if one[name].numel())


@pytest.fixture
def images(digits64):
    return digits64


def test_a_release_of_a_stage_has_its_share_of_the_budget():
    """The releases of a stage cost what one Gaussian release with `share` of mu^2 does, whatever their own shares."""
    _, _, plan, budget = prepare_run(spec(init_from=[MEANS, MERF]), META)
    whole = calibrate([Mechanism.gaussian("whole")], budget, "rdp")
    for i, share in enumerate((0.1, 0.2)):
        noises = [m.noise_multiplier for m in plan if m.name.startswith(f"init_{i}.")]
        assert len(noises) == 2
        assert sum((whole / z) ** 2 for z in noises) == pytest.approx(share)
    events = [m.event(calibrate(plan, budget, "rdp")) for m in plan]
    shares = budget_shares(events, budget.delta)
    assert sum(v["rdp"] for v in shares.values()) == pytest.approx(1)
    assert [m.name for m in plan][-1] == "denoiser"


@pytest.mark.parametrize("impl", METHODS)
def test_dp_sgd_goes_on_from_the_stage(impl, images):
    """With a DP-SGD that cannot move, the model is that of the stage; and that is far from the start."""
    rates = {name: 1e-2 for name in ("lr", "d_lr", "g_lr") if name in load_method(impl).Params.model_fields}
    stage, still = MEANS | {"training": MEANS["training"] | rates}, dict.fromkeys(rates, 1e-12)
    recipes = {"init_from": [stage]}, {"init_from": [stage], "init_only": True}, {}
    # Without noise, which two recipes do not share.
    (moved, ledger), (unmoved, _), (cold, _) = (
        train(spec(impl, float("inf"), **still, **recipe), images, Log("test")) for recipe in recipes
    )
    assert ledger.events[-1].steps == 3
    assert distance(weights(moved), weights(unmoved)) < 1e-6
    assert distance(weights(moved), weights(cold)) > 1e-2


def test_at_step_0_the_releases_are_those_of_the_whole_run(images):
    _, whole = train(spec(init_from=[MEANS]), images, Log("test"))
    log = Log("test")
    _, only = train(spec(init_from=[MEANS], init_only=True), images, log)
    assert only.events == [event for event in whole.events if event.mechanism == "gaussian"]
    assert log.rows == []
    assert audit(only.to_json(), "ledger")["passed"]
    assert check_recipe(only.to_json(), "ledger")


def test_a_stage_learns_its_own_images(images):
    """A classifier that trained on the class means alone knows the digits."""
    stage = MEANS | {"training": {"lr": 0.1, "dp": {"steps": 100, "expected_batch_size": 20}}}
    run = spec(CLASSIFIER, float("inf"), network="logreg", init_from=[stage], init_only=True)
    model, _ = train(run, images, Log("test"))
    assert (model.predict(images.images) == images.labels).mean() > 0.7


def test_a_stage_learns_smoothed_images_where_its_sampler_asks(images):
    def reached(sampler: dict[str, float]) -> dict[str, torch.Tensor]:
        run = spec(epsilon=float("inf"), init_from=[MEANS | {"sampler": sampler}], init_only=True)
        return weights(train(run, images, Log("test"))[0])

    assert distance(reached({}), reached({"tv_weight": 0.0})) == 0
    assert distance(reached({}), reached({"tv_weight": 0.5})) > 0


def test_the_methods_own_releases_are_made_once(images):
    bounds = {"max_image_norm": 4.0, "max_centered_norm": 3.0, "max_component_norm": 2.0}
    network = METHODS[DPDM]["network"]
    params = {"network": network, "noise_multiplicity": 1, "dp": DP, "prior": bounds}
    impl = "dpdm.diffusion.gauss:DPDMGauss"
    plain, _ = train(spec(impl, **params), images, Log("test"))
    model, ledger = train(spec(impl, **params, init_from=[MEANS]), images, Log("test"))
    names = [event.name for event in ledger.events]
    assert len(names) == len(set(names))
    assert {"init_0.class_sums", "class_sums", "denoiser"} <= set(names)
    assert distance(weights(model), weights(plain)) > 1e-4
    # Its own model at step 0 is the mixture's, without a stage before it.
    assert len(train(spec(impl, **params, init_only=True), images, Log("test"))[1].events) == len(names) - 3


# --- a killed run -------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", ["stage 0, step 2", "the generator of stage 1", "stage 1, step 1", "DP-SGD"])
def test_a_killed_run_neither_repeats_nor_pays_twice(at, images, tmp_path, monkeypatch):
    run, path = spec(CLASSIFIER, init_from=[MEANS, MERF]), tmp_path / "checkpoint.pt"
    straight, ledger = train(run, images, Log("test"))
    done = []
    step = warm._OpenSgd.step

    def counted(self, index, *args):
        place = self._rng.scope, index
        if place == {"stage 0, step 2": ("init_0", 2), "stage 1, step 1": ("init_1", 1)}.get(at):
            raise Killed
        step(self, index, *args)
        done.append(place)

    monkeypatch.setattr(warm._OpenSgd, "step", counted)
    descend, release, total = _kernel.Generated.descend, DpSgd._release, PrivateData._clipped_total
    descents, totals = [], []

    def counted_descent(self, loss):
        if at == "the generator of stage 1" and len(descents) == 3:
            raise Killed
        descents.append(1)
        descend(self, loss)

    def killed_release(self, *args):
        if at == "DP-SGD" and args[-1] == 1:
            raise Killed
        release(self, *args)

    monkeypatch.setattr(_kernel.Generated, "descend", counted_descent)
    monkeypatch.setattr(DpSgd, "_release", killed_release)
    monkeypatch.setattr(
        PrivateData, "_clipped_total", lambda self, name, *a: totals.append(name) or total(self, name, *a)
    )
    with pytest.raises(Killed):
        train(run, images, Log("test"), checkpoint=path, checkpoint_interval=0.0)
    at = ""
    resumed, again = train(run, images, Log("test"), checkpoint=path, checkpoint_interval=0.0)
    assert distance(weights(straight), weights(resumed)) == 0
    assert again.events == ledger.events
    assert sorted(done) == [(f"init_{i}", index) for i in (0, 1) for index in range(4)]  # each once
    assert len(descents) == 5
    assert len(totals) == len(set(totals)) == 4


# --- public data --------------------------------------------------------------------------------------------------


@pytest.fixture
def others(images):
    """Private images that are not the digits of the public data set."""
    return ImageSet(255 - images.images, images.labels, 10)


PUBLIC = {"public": "digits", "training": {"dp": {"steps": 4, "expected_batch_size": 8}}}


def test_a_public_start_costs_no_privacy_and_is_in_the_ledger(others):
    run = spec(init_from=[PUBLIC])
    _, cold = train(spec(), others, Log("test"))
    _, ledger = train(run, others, Log("test"))
    assert ledger.events == cold.events
    assert cold.public_data == ()
    assert ledger.public_data == ("digits",)
    assert "public_data" not in cold.to_json()  # ledgers of private data have the form they had
    value = ledger.to_json()
    assert Ledger.from_json(value) == ledger
    assert audit(value, "ledger")["public_data"] == "digits"
    assert check_recipe(value, "ledger")
    hidden = Ledger.from_json(value)
    hidden.public_data = ()
    with refuses("public_data", "digits"):
        check_recipe(hidden.to_json(), "ledger")


@pytest.mark.parametrize("rows", [slice(None), slice(None, None, -1), slice(100, 164)], ids=["all", "reversed", "some"])
def test_private_images_are_no_public_data(rows):
    split = Digits().load()["train"]
    private = ImageSet(split.images[rows].copy(), split.labels[rows].copy(), 10)
    with refuses("digits", "private"):
        train(spec(init_from=[PUBLIC]), private, Log("test"))


def test_blank_images_may_be_in_both(others, monkeypatch):
    blank = ImageSet(others.images.copy(), others.labels, 10)
    blank.images[0] = 0
    split = Digits().load()["train"]
    split.images[0] = 0
    monkeypatch.setattr(Digits, "load", lambda self: {"train": split})
    train(spec(init_from=[PUBLIC]), blank, Log("test"))


def test_public_data_of_the_generator_of_a_stage_is_that_of_the_run(monkeypatch):
    monkeypatch.setattr(ClassMean, "public_data", lambda self, params: ("imagenet",), raising=False)
    method, params, _, _ = prepare_run(spec(init_from=[MEANS, PUBLIC]), META)
    assert public_data(method, params) == ("imagenet", "digits")


def test_public_data_are_names_and_no_text(monkeypatch):
    monkeypatch.setattr(ClassMean, "public_data", lambda self, params: "imagenet", raising=False)
    with refuses("public_data", "imagenet"):
        prepare_run(spec(init_from=[MEANS]), META)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({}, ("init_from", "impl", "public")),
        (MEANS | PUBLIC, ("init_from", "impl", "public")),
        ({"public": "digit"}, ("public", "digits")),
        ({"public": "mnist"}, ("init_from.0", "mnist", "28")),
        (MEANS | {"impl": GAN, "params": METHODS[GAN]}, ("init_from.0", "DPGANr")),
        (MEANS | {"impl": "baselines.class_mean:ClassMeans"}, ("init_from.0", "ClassMeans", "ClassMean")),
        (MEANS | {"params": {"max_norm": 4.0}}, ("init_from.0", "params", "max_norm", "max_image_norm")),
        (MEANS | {"sampler": {"noise": 4.0}}, ("init_from.0", "sampler", "pixel_noise")),
        (MEANS | {"training": {"dp": {"step": 4}}}, ("init_from.0", "training", "step", "steps")),
        (MEANS | {"training": {"init_only": True}}, ("init_from.0", "training", "init_only")),
        (MEANS | {"share": 1.5}, ("init_from", "share", "1.5")),
        (PUBLIC | {"share": 0.5, "sampler": {"x": 1}}, ("init_from", "public", "sampler, share")),
        ({"public": "npz"}, ("public", "npz", "num_classes")),
        ({"public": {"source": "digits", "path": "x"}}, ("public", "path")),
        ({"public": {"path": "x"}}, ("public", "None", "digits")),
        (MEANS | {"params": {"max_image_norm": 4.0, "teacher": {"params": CLASSIFIER_OF_64}}},
            ("init_from.0", "ClassMean", "teacher.classifier", "without a teacher")),
    ],
)  # fmt: skip
def test_what_a_stage_cannot_be(stage, words):
    with refuses(*words, lines=None):
        prepare_run(spec(init_from=[stage]), META)


@pytest.mark.parametrize(
    ("impl", "params", "training", "words"),
    [
        (DPDM, {}, {"network": {"channels": 16}}, ("network", "8", "16")),
        (DPDM, {}, {"conditional": False}, ("network",)),
        (GAN, {}, {"width": 16}, ("network",)),
        (GAN, {"d_steps_per_g_step": 3}, {"dp": {"steps": 2}}, ("init_from.0", "d_steps_per_g_step", "2")),
        (GAUSS, {}, {"prior": {"variance_floor": 0.05}}, ("init_from.0", "prior")),
        (GAUSS, {}, {"prior_share": 0.7}, ("init_from.0", "prior_share")),
    ],
)
def test_what_a_stage_may_not_change_is_refused_before_anything_is_released(
    impl, params, training, words, digits64, monkeypatch, tmp_path
):
    monkeypatch.setattr("dpdm.jobs.train_method", lambda *_: pytest.fail("it trains"))
    stage = MEANS | {"training": {"dp": {"steps": 4, "expected_batch_size": 8}} | training}
    with refuses("training" if "network" in words else "m on digits", *words):
        jobs.train(spec(impl, init_from=[stage], **params), digits64, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_stage_that_changes_releases_is_refused_without_being_named(monkeypatch):
    """A method that does not list the key in `fixed_in_stages`."""
    monkeypatch.setattr(DPDMGauss, "fixed_in_stages", ())
    with refuses("init_from.0", "training", "releases"):
        prepare_run(spec(GAUSS, init_from=[MEANS | {"training": {"prior": {"max_image_norm": 2.0}}}]), META)


def test_a_stage_takes_more_images_at_once_than_there_are_records(images):
    stage = MEANS | {"training": {"dp": {"steps": 1, "expected_batch_size": 100}}}
    train(spec(init_from=[stage]), images, Log("test"))


def test_an_own_public_data_set_is_named_by_its_source(others, tmp_path):
    digits = Digits().load()
    for split, found in digits.items():
        np.savez(tmp_path / f"{split}.npz", images=found.images, labels=found.labels)
    keys = {
        "source": "npz",
        "train": str(tmp_path / "train.npz"),
        "test": str(tmp_path / "test.npz"),
        "num_classes": 10,
    }
    run = spec(init_from=[PUBLIC | {"public": keys}])
    _, ledger = train(run, others, Log("test"))
    assert ledger.public_data == ("npz",)
    with refuses("npz", "private"):
        train(run, ImageSet(digits["train"].images[:64], digits["train"].labels[:64], 10), Log("test"))


def test_the_summary_of_a_training_names_public_data(others, tmp_path):
    assert "uses public data: digits" in jobs.train(spec(init_from=[PUBLIC]), others, tmp_path / "public")
    assert "public" not in jobs.train(spec(), others, tmp_path / "own")


@pytest.mark.parametrize("only", [False, True])
def test_the_stages_of_a_warm_start_are_rehearsed(only, monkeypatch):
    trained = []
    monkeypatch.setattr(warm._OpenSgd, "step", lambda self, index, *_: trained.append((self._name, index)))
    rehearse(spec(init_from=[MEANS, MERF], init_only=only), META)
    assert [index for _, index in trained] == [0, 0]


def test_stages_must_leave_something_to_dp_sgd():
    with refuses("init_0.class_sums", "share"):
        prepare_run(spec(init_from=[MEANS | {"share": 0.6}, MERF | {"share": 0.5}]), META)


def test_nothing_before_dp_sgd_is_refused():
    with refuses("init_only", "init_from"):
        prepare_run(spec(init_only=True), META)


def test_a_method_without_dp_sgd_has_no_such_key():
    with refuses("init_from"):
        prepare_run(spec("baselines.class_mean:ClassMean", max_image_norm=4.0, init_from=[MEANS]), META)


def test_a_loop_without_records_cannot_take_the_name_of_a_mechanism(images):
    private = PrivateData(
        images, [Mechanism.gaussian("sums")], Budget(1.0, 1e-3), "rdp", Randomness.repeatable(0),
        Ledger(64, 1e-3, 1.0, "rdp"),
    )  # fmt: skip
    with pytest.raises(UserError, match="sums"):
        next(private.public_steps("sums", 3))


def test_a_cold_start_is_what_it_was(images):
    """An empty `init_from` changes nothing."""
    one, ledger = train(spec(), images, Log("test"))
    other, again = train(spec(init_from=[]), images, Log("test"))
    assert [e.noise_multiplier for e in ledger.events] == [e.noise_multiplier for e in again.events]
    assert public_data(load_method(DPDM), prepare_run(spec(), META)[1]) == ()
    assert np.isfinite(distance(weights(one), weights(other)))


def test_a_stage_trains_all_of_a_network_and_dpsgd_its_part(images, monkeypatch):
    seen = []
    dpsgd_of = PrivateData.dpsgd

    def dpsgd(self, name, module, *args, **kwargs):
        seen.append({n: p.detach().clone() for n, p in module.network.named_parameters()})
        return dpsgd_of(self, name, module, *args, **kwargs)

    monkeypatch.setattr(PrivateData, "dpsgd", dpsgd)
    cold, _ = train(spec(train_only=["norms"]), images, Log("test"))
    model, _ = train(spec(train_only=["norms"], init_from=[MEANS]), images, Log("test"))
    first, started = seen
    assert all(not torch.equal(first[name], started[name]) for name in ("stem.weight", "norm.weight"))
    done = weights(model)
    assert torch.equal(done["stem.weight"], started["stem.weight"])
    assert not torch.equal(done["norm.weight"], started["norm.weight"])
    assert torch.equal(weights(cold)["stem.weight"], first["stem.weight"])
