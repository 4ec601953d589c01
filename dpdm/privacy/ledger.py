"""The ledger: frozen facts of what was released. Epsilon is derived from it, never written into it."""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from dpdm.artifacts import sha256_of
from dpdm.errors import UserError
from dpdm.specs import Accountant

MECHANISMS = ("gaussian", "poisson_subsampled_gaussian", "categorical_subsampled_gaussian")
ACCOUNTANTS: tuple[Accountant, ...] = get_args(Accountant)
VERSION = 2  # of the ledger's form; version 1 had no such key, said add_or_remove_one, and lacked shape and noise
# n is public: two neighboring data sets have n records, and one of them has a record that contributes nothing.
NEIGHBOURING_RELATION = "zero_out"
NOISES = ("repeatable", "secret")
MOST_STEPS = 10**8  # of an event; an audit of more can take hours


@dataclass(frozen=True)
class Event:
    """One mechanism's releases, with everything that an accountant needs.

    Its name is not empty, and its steps are at most `MOST_STEPS`.

    Each of the `steps` draws records and computes a vector, which one drawn record more or less moves by at most
    `sensitivity` in L2 norm. Then it adds N(0, (noise_multiplier * sensitivity)^2) to every coordinate.

    - poisson_subsampled_gaussian: every record is drawn independently with probability `sample_rate`.
    - gaussian: all records are drawn; sample_rate = 1, steps = 1.
    - categorical_subsampled_gaussian: every record belongs to one of 1 / `sample_rate` shards, dealt independently;
      one shard is drawn uniformly. The vectors of any two shards are at most `sensitivity` apart as well.

    Raises:
        UserError: a field has an invalid type or value.
    """

    mechanism: Literal["gaussian", "poisson_subsampled_gaussian", "categorical_subsampled_gaussian"]
    name: str
    noise_multiplier: float
    sensitivity: float
    sample_rate: float = 1.0
    steps: int = 1

    def __post_init__(self):
        once = self.mechanism == "gaussian"
        rate = _is_number(self.sample_rate) and 0 < self.sample_rate <= 1
        steps = type(self.steps) is int and 0 <= self.steps <= MOST_STEPS
        checks = {
            "mechanism": (self.mechanism in MECHANISMS, f"one of {', '.join(MECHANISMS)}"),
            "name": (type(self.name) is str and self.name != "", "text"),
            "noise_multiplier": (_is_number(self.noise_multiplier) and self.noise_multiplier >= 0, "0 or above"),
            "sensitivity": (_is_number(self.sensitivity) and self.sensitivity > 0, "a number above 0"),
            "sample_rate": (rate and (self.sample_rate == 1 or not once), "1" if once else "above 0 and at most 1"),
            "steps": (steps and (self.steps == 1 or not once), "1" if once else f"a whole number up to {MOST_STEPS:,}"),
        }
        for name, (good, what) in checks.items():
            if not good:
                raise UserError(
                    f"privacy event {self.name!r} cannot have {name} = {getattr(self, name)!r}: it must be {what}"
                )


@dataclass
class Ledger:
    """What one run released about its `n` training records, and its budget.

    It grows only through `append` and `count_step`, which `dpdm.privacy` calls before it hands out a release.
    """

    n: int
    delta: float
    target_epsilon: float
    accountant: Accountant
    coordinates: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)  # the run's resolved spec: what was trained
    provenance: Mapping[str, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    shape: Sequence[int] = ()  # of a training image, (C, H, W); a plan depends only on it, n and num_classes
    num_classes: int = 0
    noise: Literal["repeatable", "secret"] = "repeatable"  # from the public seed, or from a secret key
    public_data: Sequence[str] = ()  # public images, or networks trained on them, from which the run learned
    failure: str = ""  # of a mechanism that had seen private images: can depend on them, so in no file

    def append(self, event: Event) -> int:
        """Records an event; returns its index."""
        self.events.append(event)
        return len(self.events) - 1

    def count_step(self, index: int) -> None:
        """Adds one step to the event at `index`."""
        self.events[index] = replace(self.events[index], steps=self.events[index].steps + 1)

    @contextlib.contextmanager
    def no_failure(self, name: str) -> Iterator[None]:
        """Inside the block, a mechanism sees private images: an error ends the run, even if a method catches it."""
        try:
            yield
        except BaseException as error:  # a method can catch any
            self.failure = self.failure or f"{name}: {type(error).__name__}: {error}"
            raise

    def refuse_failed(self) -> None:
        """UserError if a mechanism failed: failure can depend on a private image, without noise."""
        if self.failure:
            raise UserError(
                f"a private mechanism failed before ({self.failure}), and the method went on; whether one fails can "
                "depend on a private image, so let the error end the run"
            )

    def to_json(self) -> dict[str, Any]:
        """The ledger as JSON values, sealed with a digest of all other values."""
        facts = {
            "version": VERSION,
            "neighbouring_relation": NEIGHBOURING_RELATION,
            "noise": self.noise,
            "n": self.n,
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "delta": self.delta,
            "target_epsilon": "inf" if math.isinf(self.target_epsilon) else self.target_epsilon,
            "accountant": self.accountant,
            "coordinates": dict(self.coordinates),
            "recipe": dict(self.recipe),
            "provenance": dict(self.provenance),
            "events": [asdict(event) for event in self.events],
            **({"public_data": list(self.public_data)} if self.public_data else {}),
        }
        return facts | {"seal": _seal(facts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], origin: str = "ledger") -> "Ledger":
        """The inverse of `to_json`.

        Raises:
            UserError: a key is missing or unknown, a value impossible, or the ledger is of an older version or was
                changed after it was written.
        """
        if not value.keys() & {"seal", "events"}:
            raise UserError(f"{origin} is no ledger: it has no events; name the ledger.json of a run")
        if type(value.get("version")) is not int or value["version"] != VERSION:
            found = value.get("version", f"none, {value.get('neighbouring_relation', 'no neighbouring relation')}")
            raise UserError(
                f"{origin} is a ledger of another version ({found}; this code reads version {VERSION}, "
                f"{NEIGHBOURING_RELATION}): train the run again, or audit it with the code that wrote it"
            )
        facts = {key: item for key, item in value.items() if key != "seal"}
        if value.get("seal") != _seal(facts):
            raise UserError(f"{origin} was changed after it was written (its seal does not fit); train the run again")
        facts.setdefault("public_data", [])
        if wrong := facts.keys() ^ _EXPECTED.keys():
            raise UserError(f"{origin} is not a ledger: keys {', '.join(sorted(wrong))}; train the run again")
        for key, (what, fits) in _EXPECTED.items():
            if not fits(facts[key]):
                raise UserError(f"{origin}: {key} must be {what}, got {facts[key]!r}; train the run again")
        del facts["version"], facts["neighbouring_relation"]
        try:
            facts["events"] = [Event(**event) for event in facts["events"]]
        except TypeError as error:
            raise UserError(f"{origin}: this is no event ({error}); train the run again") from error
        except UserError as error:
            raise UserError(f"{origin}: {error}; train the run again") from error
        target = math.inf if facts["target_epsilon"] == "inf" else facts["target_epsilon"]
        tuples = {name: tuple(facts[name]) for name in ("shape", "public_data")}
        return cls(**facts | {"target_epsilon": target} | tuples)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold; some ints are not."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "version": (f"{VERSION}", lambda x: x == VERSION),
    "neighbouring_relation": (repr(NEIGHBOURING_RELATION), lambda x: x == NEIGHBOURING_RELATION),
    "noise": (f"one of {', '.join(NOISES)}", lambda x: x in NOISES),
    "n": ("a positive whole number", _is_count),
    "shape": ("three positive whole numbers", lambda x: isinstance(x, list) and list(map(_is_count, x)) == [True] * 3),
    "num_classes": ("a positive whole number", _is_count),
    "delta": ("a positive number below 1", lambda x: _is_number(x) and 0 < x < 1),
    "target_epsilon": ('a positive number, or "inf"', lambda x: x == "inf" or (_is_number(x) and x > 0)),
    "accountant": (f"one of {', '.join(ACCOUNTANTS)}", lambda x: x in ACCOUNTANTS),
    "coordinates": ("an object", _is_object),
    "recipe": ("an object", _is_object),
    "provenance": ("an object", _is_object),
    "events": ("a list", lambda x: isinstance(x, list)),
    "public_data": ("a list of names", lambda x: isinstance(x, list) and all(isinstance(name, str) for name in x)),
}  # the condition on each value of a ledger's JSON


def _seal(facts: Mapping[str, Any]) -> str:
    # Guards against slips and partial edits. Even someone who rewrites events and seal together cannot lower epsilon
    # below the cost of those events, since the audit derives it from them.
    return sha256_of(json.dumps(facts, sort_keys=True, allow_nan=True).encode())
