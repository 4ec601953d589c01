"""The contract's loader, what a run is checked for before it trains, and the harness around `fit`."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from refusals import refuses

from dpdm.config import parse_study
from dpdm.data import ImageMeta, ImageSet
from dpdm.errors import UserError
from dpdm.method import MEMBERS, MEMBERS_OF_KIND, finite, load_method, prepare_run, train
from dpdm.privacy import Mechanism, Randomness
from dpdm.progress import Log
from dpdm.provenance import provenance
from dpdm.sources import SOURCES

META = ImageMeta(64, (1, 8, 8), 10)

MODULE = """
from dpdm.method import NoParams
from dpdm.privacy import Mechanism

class Good:
    Params = SamplerParams = NoParams
    class Model:
        def sample(self, labels, sampler, rng): pass
        def state(self): pass
        def from_state(state): pass
    def plan(self, params, meta):
        return (Mechanism.gaussian("sums"),)
    def fit(self, private, params, rng, log):
        private.release_sum("sums", lambda x, y: x[:, 0, 0], 1.0)
        return private, rng, log

class GoodClassifier(Good):
    SamplerParams = property()
    class Model:
        family = "cnn"
        def predict(self, images): pass
        def state(self): pass
        def from_state(state): pass

class NeedsArgument:
    def __init__(self, size): pass

not_a_class = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module named after the test's folder; returns its name."""

    def write(text: str, name: str = "some_method") -> str:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
        return name

    return write


@pytest.fixture
def run(tiny_study_dict):
    """`run(method, **changes)`: a run of the tiny study with some of its fields changed."""

    def make(method: str = "class_mean", **changes):
        return parse_study(tiny_study_dict, "s").run("digits", method, 10.0, 0).model_copy(update=changes)

    return make


def refusal(impl: str, kind: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        load_method(impl, kind)
    message = str(error.value)
    assert message.startswith(f"impl {impl}: ")
    assert "\n" not in message
    return message


# --- load_method ----------------------------------------------------------------------------------------------


def test_a_method_is_found_by_name(module):
    assert type(load_method(module(MODULE) + ":Good").method).__name__ == "Good"


@pytest.mark.parametrize(
    ("impl", "part"),
    [
        ("baselines.no_such_thing:X", "cannot import baselines.no_such_thing (ModuleNotFoundError"),
        (".class_mean:X", "cannot import .class_mean"),
        ("baselines.class_mean:ClassMeen", "baselines.class_mean has no ClassMeen"),
        ("baselines.class_mean:np", "np() failed (TypeError"),
        ("baselines.class_mean:Params", "Params() failed (ValidationError"),
    ],
)
def test_an_impl_that_is_no_method(impl, part):
    assert part in refusal(impl)


def test_a_module_that_fails_on_import_is_named(module):
    assert "ZeroDivisionError" in refusal(module("1 / 0", "broken_method") + ":X")
    assert "SyntaxError" in refusal(module("def", "unfinished_method") + ":X")


def test_a_class_that_needs_arguments(module):
    assert "NeedsArgument() failed (TypeError" in refusal(module(MODULE) + ":NeedsArgument")


@pytest.mark.parametrize("name", ["exiting_method", "exiting_class"])
def test_a_module_that_exits_is_named(module, name):
    text = "import sys\n" + ("sys.exit(3)" if name == "exiting_method" else "def X(): sys.exit(3)")
    assert "SystemExit: 3" in refusal(module(text, name) + ":X")


@pytest.mark.parametrize("params", ["object", "dict", "{}", "NoParams()", "int | NoParams"])
def test_params_that_are_no_model_are_named(module, params):
    name = module(f"{MODULE}\nGood.Params = {params}\n")
    assert "Params must be a class derived from dpdm.params.Strict" in refusal(name + ":Good")


@pytest.mark.parametrize("member", [*MEMBERS, *MEMBERS_OF_KIND["generator"]])
def test_a_missing_member_is_named(module, member):
    name = module(MODULE + f"\ndel Good.{member}\n")
    message = refusal(name + ":Good", "generator")
    assert f"lacks {member}" in message
    assert "docs/adding_a_method.md" in message


@pytest.mark.parametrize(
    ("impl", "kind", "lacks"),
    [("Good", "classifier", "Model.predict"), ("GoodClassifier", "generator", "SamplerParams, Model.sample")],
)
def test_a_method_of_the_other_kind_says_which_to_set(module, impl, kind, lacks):
    name = module(MODULE)
    other = "generator" if kind == "classifier" else "classifier"
    message = refusal(f"{name}:{impl}", kind)
    assert message == f"impl {name}:{impl}: lacks {lacks}, so it is no {kind}; set kind: {other}"
    for found in (load_method(f"{name}:{impl}", other), load_method(f"{name}:{impl}")):  # training is the same
        assert type(getattr(found, "method", found)).__name__ == impl


def test_a_method_may_be_both(module):
    both = "\nclass Both(Good):\n    class Model(Good.Model, GoodClassifier.Model): pass\n"
    name = module(MODULE + both)
    for kind in MEMBERS_OF_KIND:
        load_method(f"{name}:Both", kind)


def test_a_method_that_is_neither_lacks_what_its_kind_needs(module):
    name = module(MODULE + "\ndel GoodClassifier.Model.predict\n")
    assert "lacks Model.predict; see docs/adding_a_method.md" in refusal(name + ":GoodClassifier", "classifier")


# --- prepare_run ----------------------------------------------------------------------------------------------


def test_a_run_that_can_train(run):
    method, params, plan, budget = prepare_run(run(), META)
    assert type(method.method).__name__ == "ClassMean"
    assert params.max_image_norm == 4.0
    assert [mechanism.name for mechanism in plan] == ["class_counts", "class_sums"]
    assert (budget.epsilon, budget.delta) == (10.0, 1 / 128)


@pytest.mark.parametrize("kind", ["Good", "GoodClassifier"])
@pytest.mark.parametrize(
    ("member", "value", "part"),
    [
        ("plan", "None", "plan"),
        ("plan", "Mechanism.gaussian('a')", "plan"),
        ("plan", "'text'", "'t'"),
        ("plan", "sys.exit(3)", "SystemExit: 3"),
        ("plan", "1 / 0", "ZeroDivisionError"),
        ("plan", "[Mechanism('a', sensitivity='1')]", "sensitivity = '1'"),
        ("plan", "[Mechanism('a', noise_ratio='1')]", "plan"),
        ("plan", "[Mechanism('a', steps=2)]", "steps = 2"),
        ("public_data", "3", "public_data"),
        ("departures", "[3]", "departures"),
    ],
)
def test_a_member_that_fails_or_returns_something_else_is_named(module, run, kind, member, value, part):
    name = module(f"{MODULE}\nimport sys\nGood.{member} = lambda *_: {value}\n")
    with refuses("methods.class_mean on digits", part):
        prepare_run(run(impl=f"{name}:{kind}", params={}), META)


def test_a_plan_that_takes_other_arguments_is_named(module, run):
    name = module(f"{MODULE}\nGood.plan = lambda self, params: ()\n")
    with refuses(f"{name}:Good", "plan", "positional arguments"):
        prepare_run(run(impl=f"{name}:Good", params={}), META)


def messages(spec, meta=META) -> list[str]:
    with pytest.raises(UserError) as error:
        prepare_run(spec, meta)
    return str(error.value).splitlines()


def test_every_wrong_parameter_is_named_by_its_yaml_path(run):
    lines = messages(run(params={"max_image_nrm": 4.0, "count_share": 2.0}))
    assert len(lines) == 3
    assert all(line.startswith("methods.class_mean.params: ") for line in lines)
    assert "methods.class_mean.params: max_image_nrm: unknown key; did you mean 'max_image_norm'?" in lines


def test_what_depends_on_the_data_set_names_method_and_data_set(run):
    spec = run("dpdm")
    small = ImageMeta(15, META.shape, META.num_classes)  # expected_batch_size is 16
    assert messages(spec, small)[0].startswith("methods.dpdm on digits: expected_batch_size = 16 is larger than the 15")
    assert messages(run(delta=0.5))[0].startswith("methods.class_mean on digits: delta = 0.5 is not below 1/n")
    assert messages(run(), ImageMeta(0, (1, 8, 8), 10)) == [
        "methods.class_mean on digits: the training split holds no images"
    ]


def test_a_run_of_the_other_kind_is_refused_before_training(run):
    with refuses("classifier", "kind: generator"):
        prepare_run(run(), META, "classifier")
    assert prepare_run(run(), META, "generator")[2] == prepare_run(run(), META)[2]


def test_a_large_delta_with_permission(run):
    assert prepare_run(run(delta=0.5, allow_large_delta=True), META)[3].delta == 0.5


# --- train ----------------------------------------------------------------------------------------------------


def test_the_harness_makes_the_door_and_keeps_the_ledger(run, module, digits64):
    log = Log("test")
    spec = run(impl=module(MODULE) + ":Good", params={}, accountant="prv", seed=7)
    (private, rng, seen_log), ledger = train(spec, digits64, log)
    assert private.ledger is ledger
    assert seen_log is log
    assert (rng.seed, rng.scope) == (7, "method")
    assert list(private._plan.values()) == [Mechanism.gaussian("sums")]
    facts = ledger.to_json()
    expected = {
        "n": 64, "shape": [1, 8, 8], "num_classes": 10, "delta": 1 / 128, "target_epsilon": 10.0, "accountant": "prv",
        "noise": "repeatable",
        "coordinates": spec.coordinates().model_dump(mode="json"), "recipe": spec.model_dump(mode="json"),
    }  # fmt: skip
    assert {key: facts[key] for key in expected} == expected
    assert [event["name"] for event in facts["events"]] == ["sums"]
    assert {key: facts["provenance"][key] for key in provenance()} == provenance()
    assert len(facts["provenance"]["method_code"]) == 16
    assert digits64.digest() not in str(facts)  # a digest of private data confirms a guess of them


CARELESS = """
from baselines.class_mean import ClassMean
from dpdm.errors import UserError
from dpdm.method import NoParams
from dpdm.privacy import Mechanism
from dpdm.sources import SOURCES

class Swallows(ClassMean):
    def fit(self, private, params, rng, log):
        try:
            private.release_sum("class_counts", lambda x, y: x.flatten(1) / (y[:, None] != 3), 1.0)
        except UserError:
            return self.Model(None)

class Stop(BaseException):
    pass

class StopsEarly(ClassMean):
    def fit(self, private, params, rng, log):
        def counts(x, y):
            if y.min() < 3:
                raise Stop
            return x.flatten(1)

        try:
            private.release_sum("class_counts", counts, 1.0)
        except Stop:
            return self.Model(None)

class Loads(ClassMean):
    def fit(self, private, params, rng, log):
        SOURCES["digits"]().load()

class LoadsPublic(Loads):
    def public_data(self, params):
        return ("digits",)

    def fit(self, private, params, rng, log):
        SOURCES["digits"]().load()
        return super(Loads, self).fit(private, params, rng, log)
"""


def test_a_method_cannot_go_on_after_a_mechanism_failed(run, module, digits64):
    """Whether it fails can depend on one private image."""
    name = module(CARELESS, "swallowing")
    with refuses("class_counts", "not finite", "went on"):
        train(run(impl=f"{name}:Swallows"), digits64, Log())
    with refuses("class_counts", "Stop", "went on"):
        train(run(impl=f"{name}:StopsEarly"), digits64, Log())


def test_a_method_cannot_load_images_itself(run, module, digits64, monkeypatch):
    name = module(CARELESS, "loading")
    with refuses("digits", "public_data", "the door"):
        train(run(impl=f"{name}:Loads"), digits64, Log())
    with refuses("digits", "private images"):
        train(run(impl=f"{name}:LoadsPublic"), digits64, Log())
    for check in ("refuse_private", "refuse_shared"):
        monkeypatch.setattr(f"dpdm.method.{check}", lambda *_: None)
    assert train(run(impl=f"{name}:LoadsPublic"), digits64, Log())
    assert SOURCES["digits"]().load()  # as before


def test_a_methods_own_randomness_is_not_the_privacy_noise(run, module, digits64):
    """A method that could draw the door's noise could subtract it."""
    (private, rng, _), _ = train(run(impl=module(MODULE) + ":Good", params={}), digits64, Log())
    known = Randomness.repeatable(rng.seed), Randomness.repeatable(rng.seed, rng.scope)
    noise = private._rng.scoped("sums").words("noise", count=4)
    assert all((one.scoped("sums").words("noise", count=4) != noise).all() for one in known)


def test_training_on_nothing(run):
    import numpy as np

    with pytest.raises(UserError, match="no images"):
        train(run(), ImageSet(np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0, np.int64), 10), Log())


def test_one_record_less_means_other_noise_for_all(run, module, digits64):
    """Else two runs, before and after a person withdrew, would show that person when subtracted."""
    changed = digits64.images.copy()
    changed[0, 0, 0, 0] ^= 1
    fewer = ImageSet(digits64.images[1:], digits64.labels[1:], 10)
    words = []
    for images in (digits64, digits64, fewer, ImageSet(changed, digits64.labels, 10)):
        (private, _, _), _ = train(run(impl=module(MODULE) + ":Good", params={}), images, Log())
        words.append(private._rng.scoped("sums").words("noise", count=2).tobytes())
    assert words[0] == words[1]
    assert len(set(words)) == 3


@pytest.mark.parametrize("change", [{"epsilon": 1.0}, {"dataset": "other"}, {"method": "other"}, {"study": "other"}])
def test_two_runs_of_one_seed_do_not_share_their_noise(run, module, digits64, change):
    """Shared noise at two epsilons would cancel, and give away what both of them hid."""
    (one, _, _), _ = train(run(impl=module(MODULE) + ":Good", params={}), digits64, Log())
    spec = run(impl=module(MODULE) + ":Good", params={}).model_copy(update=change)
    (two, _, _), _ = train(spec, digits64, Log())
    noises = [door._rng.scoped("sums").words("noise", count=4) for door in (one, two)]
    assert (noises[0] != noises[1]).all()


def test_a_later_version_of_the_code_repeats_a_run(run, module, digits64):
    spec = run(impl=module(MODULE) + ":Good", params={})
    seen = []
    for addition in ("", "VERSION = 2"):
        path = Path(sys.modules[spec.impl.partition(":")[0]].__file__) if seen else None
        if path:
            path.write_text(path.read_text() + addition)
        (door, _, _), ledger = train(spec, digits64, Log())
        noise = door._rng.scoped("sums").words("noise", count=4).tobytes()
        seen.append((noise, ledger.provenance["method_code"]))
    (first, old), (second, new) = seen
    assert first == second
    assert old != new


def test_the_digest_of_a_methods_code_covers_its_module_and_what_it_shares(run, module, digits64, tmp_path):
    spec = run(impl=module(MODULE) + ":Good", params={})

    def code() -> str:
        return train(spec, digits64, Log())[1].provenance["method_code"]

    seen = [code()]
    path = Path(sys.modules[spec.impl.partition(":")[0]].__file__)
    (path.parent / "other.py").write_text("x = 1")
    assert code() == seen[0]  # a module that other methods share
    (path.parent / "package").mkdir()
    files = {
        path.name: path.read_text() + "def later():\n    from package import helper\nimport math, torch, not_there\n",
        "package/__init__.py": "", "package/helper.py": "from . import deeper", "package/deeper.py": "x = 1",
    }  # fmt: skip
    for name, text in files.items():
        (path.parent / name).write_text(text)
    seen.append(code())
    for name, text in (("helper.py", "from .deeper import x"), ("deeper.py", "x = 2")):
        (path.parent / "package" / name).write_text(text)
        seen.append(code())
    assert len(set(seen)) == 4
    (path.parent / "package" / "unused.py").write_text("x = 1")
    assert code() == seen[-1]


def test_a_method_of_a_notebook_has_code_without_a_digest(run, digits64, monkeypatch):
    notebook = ModuleType("__main__")
    exec(MODULE, vars(notebook))
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    _, ledger = train(run(impl="__main__:Good", params={}), digits64, Log())
    assert ledger.provenance["method_code"] == "unknown"


def test_a_run_that_leaves_out_a_part_of_its_plan_is_refused(run, module, digits64):
    """Its model rests on something else, such as a release of another run in the same process."""
    text = MODULE.replace('        private.release_sum("sums", lambda x, y: x[:, 0, 0], 1.0)\n', "")
    with refuses("class_mean/10/0", "0 of the 1 steps of sums"):
        train(run(impl=module(text) + ":Good", params={}), digits64, Log())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import dpdm.method, dpdm.diffusion.method, baselines.dpgan_r, baselines.dp_sinkhorn, baselines.dp_merf",
         ["scipy", "dp_accounting", "opacus"]),
        ("from dpdm.privacy import Budget, Mechanism, calibrate\n"
         "calibrate([Mechanism.gaussian('a')], Budget(1.0, 1e-5), 'rdp')", ["opacus"]),
    ],
    ids=["sample and score", "train"],
)  # fmt: skip
def test_a_job_loads_no_accountant_that_it_does_not_use(run_python, code, absent):
    """Opacus takes longer than torch; half of the jobs account for nothing, and the others need its formulas only."""
    done = run_python("-c", f"{code}\nimport sys\nprint([name for name in {absent} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_model_that_is_not_finite_is_refused_with_the_name_of_its_part(run, value):
    state = {"weights": [{"running_var": torch.tensor([1.0, value])}], "count": torch.tensor([1]), "size": 3}
    with refuses(run().name, "weights.0.running_var", run().impl):
        finite(state, run())
    state["weights"][0]["running_var"] = torch.tensor([1.0])
    assert finite(state, run()) is state
