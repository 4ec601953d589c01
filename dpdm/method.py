"""The contracts of generators and classifiers, how a method is loaded, and how the harness runs it."""

import ast
import contextlib
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from pydantic import BaseModel
from torch import Tensor

from dpdm.artifacts import sha256_of
from dpdm.checkpoint import Checkpoint
from dpdm.data import ImageMeta, ImageSet, resolve_delta
from dpdm.errors import UserError
from dpdm.explain import imported, models_of, nearest, parse_params
from dpdm.layout import ROOT
from dpdm.params import Strict
from dpdm.privacy import Budget, Ledger, Mechanism, PrivateData, Randomness, settled
from dpdm.privacy.key import secret_key
from dpdm.processes import Processes
from dpdm.progress import Log
from dpdm.provenance import meaning, provenance
from dpdm.rng import Streams
from dpdm.sources.base import loads_only
from dpdm.specs import RunSpec, spec_json
from dpdm.teacher import Taught
from dpdm.warm import WarmStarted, public_data, refuse_private, refuse_shared

_INSTALLED = Path(np.__file__).parents[1]


class NoParams(Strict):
    """No parameters."""


class Model(Protocol):
    """What a method learned: post-processing of its releases."""

    def state(self) -> dict[str, Any]:
        """Tensors and JSON values only."""

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""


class GeneratorModel(Model, Protocol):
    """What a generator learned."""

    def sample(self, labels: np.ndarray, sampler: Any, rng: Streams) -> np.ndarray:
        """One image per label: uint8 [n, C, H, W]. Image i depends only on label i and its own streams."""


class ClassifierModel(Model, Protocol):
    """What a classifier learned. Test labels never reach it."""

    family: str  # one of the study's classifiers; the accuracy is in the column `acc_<family>`

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The class (int64 [n]) of each image (uint8 [n, C, H, W]), the same in any batch."""


class Method(Protocol):
    """A class with these members, named in a study as `impl: module:Class`.

    A generator (`kind: generator`, the default) also has `SamplerParams`, for an entry of the study's `samplers:`; its
    model is a GeneratorModel. A classifier (`kind: classifier`) is judged itself; its model is a ClassifierModel.
    """

    Params: ClassVar[type[BaseModel]]  # the study's `params:`
    Model: ClassVar[type[Model]]

    def plan(self, params: Any, meta: ImageMeta) -> tuple[Mechanism, ...]:
        """Every mechanism that `fit` uses, from public facts only.

        Raises:
            UserError: the method cannot serve such a data set with these parameters.
        """

    def fit(self, private: PrivateData, params: Any, rng: Streams, log: Log) -> Model:
        """Learns from the private images through the planned mechanisms."""


MEMBERS = ("Params", "Model", "Model.state", "Model.from_state", "plan", "fit")
MEMBERS_OF_KIND = {
    "generator": ("SamplerParams", "Model.sample"),
    "classifier": ("Model.predict",),
}


def load_method(impl: str, kind: str | None = None) -> Method:
    """The method named `module:Class`.

    Args:
        impl: its place.
        kind: "generator" or "classifier", checked if given: training is the same for both.

    Raises:
        UserError: it cannot be imported, is not a method, or is of the other kind.
    """
    module_name, _, class_name = impl.partition(":")
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # for `baselines`, a name too common to be a package of a wheel
    try:
        module = imported(module_name)
    except UserError as error:
        raise UserError(f"impl {impl}: {error}") from error
    if not hasattr(module, class_name):
        known = [name for name, value in vars(module).items() if hasattr(value, "plan") and hasattr(value, "fit")]
        raise UserError(f"impl {impl}: {module_name} has no {class_name}; {nearest(class_name, known)}")
    try:
        method = getattr(module, class_name)()
    except (Exception, SystemExit) as error:  # not a class, or one that needs arguments: another name was meant
        reason = str(error).partition("\n")[0]
        raise UserError(f"impl {impl}: {class_name}() failed ({type(error).__name__}: {reason})") from error
    for name in ("Params", "SamplerParams"):
        kind_of = getattr(method, name, NoParams)
        if not models_of(kind_of) or (name == "Params" and not isinstance(kind_of, type)):
            raise UserError(f"impl {impl}: {name} must be a class derived from dpdm.params.Strict, got {kind_of!r}")
    missing = _missing(method, MEMBERS)
    if kind is not None:
        (other,) = set(MEMBERS_OF_KIND) - {kind}
        lacking = _missing(method, MEMBERS_OF_KIND[kind])
        if lacking and not missing and not _missing(method, MEMBERS_OF_KIND[other]):
            raise UserError(f"impl {impl}: lacks {', '.join(lacking)}, so it is no {kind}; set kind: {other}")
        missing += lacking + (_missing(method, ("Model.family",)) if kind == "classifier" else [])
    if missing:
        raise UserError(f"impl {impl}: lacks {', '.join(missing)}; see docs/adding_a_method.md")
    if WarmStarted.fits(method):
        method = WarmStarted(method, functools.partial(load_method, kind="generator"))
    generates = not _missing(method, MEMBERS_OF_KIND["generator"])
    return Taught(method, functools.partial(load_method, kind="classifier")) if generates else method


def _missing(method: Any, members: tuple[str, ...]) -> list[str]:
    """The members that `method` lacks; `Model.sample` is one of its model."""

    def has(member: str) -> bool:
        owner, _, name = member.rpartition(".")
        return hasattr(getattr(method, owner, None) if owner else method, name)

    return [member for member in members if not has(member)]


def prepare_run(
    spec: RunSpec, meta: ImageMeta, kind: str | None = None
) -> tuple[Method, Any, tuple[Mechanism, ...], Budget]:
    """Builds and checks everything that is known about a run before it trains.

    Raises:
        UserError: the method cannot be imported or is not of `kind`, its params break its schema, it cannot serve the
            data set, one of its members fails or returns a wrong type, or the budget is impossible.
    """
    where = f"methods.{spec.method}"
    method = load_method(spec.impl, kind)
    params = parse_params(method.Params, spec.params, f"{where}.params")
    try:
        budget = Budget(spec.epsilon, resolve_delta(spec.delta, meta.n, spec.allow_large_delta))
        plan = settled(tuple_of(Mechanism, f"{spec.impl}: plan", method.plan, params, meta), budget, spec.accountant)
        tuple_of(str, f"{spec.impl}: public_data", public_data, method, params)
        tuple_of(str, f"{spec.impl}: departures", departures, method, params, meta)
        if getattr(params, "init_only", False):  # the noise of the releases is that of the whole plan
            plan = tuple(m for m in plan if m.mechanism == "gaussian" or m.share is not None)
        return method, params, plan, budget
    except UserError as error:
        raise UserError(f"{where} on {spec.dataset}: {error}") from error


def tuple_of(kind: type, member: str, call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """The return value of a method's member; UserError if the member fails or returns no tuple of `kind`."""
    try:
        values = tuple(call(*arguments))
        if wrong := [value for value in values if not isinstance(value, kind)]:
            raise TypeError(f"it holds {wrong[0]!r}")
        return values
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a method's code raises
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{member} must return a tuple of {kind.__name__} ({reason})") from error


def departures(method: Method, params: Any, meta: ImageMeta) -> tuple[str, ...]:
    """The differences of such a run from the published method, a few words each, by its optional `departures`."""
    return tuple(getattr(method, "departures", lambda *_: ())(params, meta))


def train(
    spec: RunSpec,
    images: ImageSet,
    log: Log,
    processes: Processes | None = None,
    checkpoint: Path | None = None,
    checkpoint_interval: float = 300.0,
) -> tuple[Model, Ledger]:
    """Runs one method behind a fresh door, or continues where `checkpoint` says.

    The harness, not the method, makes the door and keeps the ledger.

    Args:
        checkpoint: a file that is read if it exists, and written every `checkpoint_interval` seconds and on
            SIGTERM or SIGUSR1; the key of secret noise is next to it (see `key_path`). The caller removes both once
            the results are safe.

    Raises:
        SystemExit: a signal asked to stop; the checkpoint was saved.
        UserError: see `prepare_run`; or training failed in a way the user can fix.
    """
    method, params, plan, budget = prepare_run(spec, images.meta)
    public = public_data(method, params)
    refuse_private(public, images)
    ledger = Ledger(
        n=images.meta.n,
        delta=budget.delta,
        target_epsilon=budget.epsilon,
        accountant=spec.accountant,
        coordinates=spec.coordinates().model_dump(mode="json"),
        recipe=spec.model_dump(mode="json"),
        provenance=provenance() | {"method_code": method_code(spec, params)},
        shape=images.meta.shape,
        num_classes=images.meta.num_classes,
        noise=spec.noise,
        public_data=public,
    )
    run = run_fingerprint(spec, images)
    # A checkpoint and a secret key are invalid for other code, but survive a commit that does not change this code.
    made = sha256_of(run.encode(), *(ledger.provenance[name].encode() for name in ("code", "method_code")))
    saves = Checkpoint(checkpoint, made, log, checkpoint_interval, processes)
    if spec.noise == "secret":
        rng = Randomness(secret_key(checkpoint, made, processes or Processes()))
    else:
        rng = Randomness.repeatable(spec.seed, run)
    private = PrivateData(images, plan, budget, spec.accountant, rng, ledger, processes, saves)
    with loads_only(public, lambda name, splits: refuse_shared(name, splits, images)):
        model = method.fit(private, params, Streams(spec.seed, "method"), log)
    ledger.refuse_failed()
    done = {event.name: event.steps for event in ledger.events}
    for name, steps in ((one.name, one.steps) for one in plan):
        if done.get(name, 0) < steps:
            raise UserError(
                f"{spec.name}: fit() of {spec.impl} took {done.get(name, 0)} of the {steps} steps of {name} in its "
                "plan; use each mechanism as planned, and no release of another run"
            )
    return model, ledger


def finite(state: Any, spec: RunSpec, name: str = "state") -> Any:
    """The state of a trained model; UserError if a number in it is not finite, because the training diverged."""
    if isinstance(state, Tensor) and state.is_floating_point() and not state.isfinite().all():
        raise UserError(
            f"{spec.name}: {name} of the trained model is not finite; lower the learning rate of {spec.impl}"
        )
    parts = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list | tuple) else ()
    for key, part in parts:
        finite(part, spec, f"{name}.{key}")
    return state


def run_fingerprint(spec: RunSpec, images: ImageSet) -> str:
    """Digest of recipe and data, which determines repeatable noise: equal noise in two different runs would cancel.

    Two versions of the code have the same digest, so that a later version can repeat a run. Secret noise is never
    shared. Do not publish the digest: it can confirm a guess of the data.
    """
    return sha256_of(spec_json(spec).encode(), images.digest().encode())


def method_code(spec: RunSpec, params: Any) -> str:
    """Digest of the modules of a run's method, warm start and teacher, and of those that they import.

    Modules of `dpdm`, of Python and of installed packages do not count.
    """
    parts = (*getattr(params, "init_from", ()), getattr(params, "teacher", None))
    modules = [spec.impl, *(part.impl for part in parts if part and part.impl)]
    todo = {impl.partition(":")[0] for impl in modules}
    if any(_source(name) is None for name in todo):
        return "unknown"  # a notebook, or another place without a file
    seen = set()
    while todo - seen:
        seen.add(name := (todo - seen).pop())
        todo |= {found for found in _imports(name) if not _is_library(found)}
    sources = sorted({source for name in seen if (source := _source(name))})
    return sha256_of(*(part for p in sources for part in (p.name.encode(), meaning(p))))[:16]


def _source(name: str) -> Path | None:
    """The file of a module; None if there is no such module, or it has no Python file."""
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and spec.origin.endswith(".py"):
            return Path(spec.origin)
    return None


def _imports(name: str) -> Iterator[str]:
    """The modules that a module imports; of `from package import module` the module, and not its package."""
    source = _source(name)
    package = name if source and source.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source.read_bytes() if source else b"")):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for inside in (f"{base}.{alias.name}" for alias in node.names):
                yield inside if _source(inside) else base


def _is_library(name: str) -> bool:
    """Whether a module is of `dpdm`, of Python, or of a package installed next to NumPy."""
    package, source = name.partition(".")[0], _source(name)
    return package == "dpdm" or package in sys.stdlib_module_names or not source or _INSTALLED in source.parents
