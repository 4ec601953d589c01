"""The ledger and its audit: facts in, epsilon out, tampering noticed."""

import copy
import json
import math

import pytest
from refusals import refuses

from dpdm.errors import UserError
from dpdm.privacy import Event, Ledger, Mechanism, epsilon_spent
from dpdm.privacy.audit import audit
from dpdm.privacy.ledger import _seal


def ledger(noise: float = 5.0, target: float = 1.0) -> Ledger:
    out = Ledger(
        1000, 1e-4, target, "rdp", {"method": "m"}, {"params": {}}, {"code": "x"}, shape=(1, 8, 8), num_classes=10
    )
    out.append(Event("gaussian", "sums", noise, 2.0))
    out.append(Event("poisson_subsampled_gaussian", "net", noise, 1.0, 0.01, 10))
    return out


def resealed(value: dict) -> dict:
    facts = {k: v for k, v in value.items() if k != "seal"}
    return facts | {"seal": _seal(facts)}


@pytest.mark.parametrize("target", [1.0, math.inf])
def test_round_trip(target):
    value = json.loads(json.dumps(ledger(target=target).to_json(), allow_nan=False))
    assert Ledger.from_json(value) == ledger(target=target)


def test_epsilon_is_derived_not_stored():
    assert "epsilon" not in json.dumps(ledger().to_json()).replace("target_epsilon", "")
    row = audit(ledger().to_json(), "l")
    assert row["epsilon_rdp"] == epsilon_spent(ledger().events, 1e-4, "rdp")
    assert row["epsilon_prv"] == epsilon_spent(ledger().events, 1e-4, "prv")
    assert row["passed"]


def test_audit_fails_above_the_target():
    row = audit(ledger(noise=1.0).to_json(), "l")
    assert row["epsilon_rdp"] > 1
    assert not row["passed"]


@pytest.mark.parametrize("above", ["rdp", "prv", "pld"])
def test_audit_fails_when_one_accountant_alone_is_above(monkeypatch, above):
    """Should the declared accountant be wrong, another one still says no."""
    says = {"rdp": 0.5, "prv": 0.5, "pld": 0.5} | {above: 1.1}
    monkeypatch.setattr("dpdm.privacy.audit.epsilons_spent", lambda events, delta: says)
    assert not audit(ledger().to_json(), "l")["passed"]


def test_rdp_is_asked_only_where_it_was_declared(monkeypatch):
    """It is looser: a run that PRV calibrated is above its target under RDP, and honest."""
    says = {"rdp": 1.1, "prv": 0.9, "pld": 0.9}
    monkeypatch.setattr("dpdm.privacy.audit.epsilons_spent", lambda events, delta: says)
    assert audit(resealed(ledger().to_json() | {"accountant": "prv"}), "l")["passed"]


def test_a_delta_below_what_the_accountants_resolve_is_refused():
    with pytest.raises(UserError, match=r"tiny.json: delta .* 1e-12.* 1e-17"):
        audit(resealed(ledger().to_json() | {"delta": 1e-17}), "tiny.json")


@pytest.mark.parametrize("target", [1.0, math.inf])
def test_infinite_epsilon_passes_only_where_it_was_asked_for(target):
    row = audit(ledger(noise=0.0, target=target).to_json(), "l")
    assert row["epsilon_rdp"] == row["epsilon_prv"] == "inf"
    assert row["passed"] == math.isinf(target)


@pytest.mark.parametrize(
    ("key", "value"), [("n", 999), ("delta", 1e-3), ("target_epsilon", 2.0), ("accountant", "prv"), ("recipe", {})]
)
def test_any_change_breaks_the_seal(key, value):
    facts = ledger().to_json()
    facts[key] = value
    with pytest.raises(UserError, match="changed after it was written"):
        audit(facts, "l")


def test_a_changed_event_breaks_the_seal():
    for key, value in (("noise_multiplier", 50.0), ("steps", 1), ("sample_rate", 0.001)):
        facts = copy.deepcopy(ledger().to_json())
        facts["events"][1][key] = value
        with pytest.raises(UserError, match="changed after it was written"):
            audit(facts, "l")


def test_resealing_cannot_hide_what_the_events_cost():
    facts = ledger().to_json()
    facts["events"][0]["noise_multiplier"] = 0.5
    assert not audit(resealed(facts), "l")["passed"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("noise_multiplier", -1.0), ("noise_multiplier", math.nan), ("noise_multiplier", "5"), ("sensitivity", 0.0),
        ("sample_rate", 0.0), ("sample_rate", 1.5), ("steps", -1), ("steps", 1.5),
        ("mechanism", "laplace"), ("mechanism", []), ("extra", 1), ("name", None), ("name", 5), ("name", [1]),
        ("name", ""), ("noise_multiplier", 10**400), ("noise_multiplier", math.inf), ("noise_multiplier", True),
        ("sensitivity", 10**400), ("sample_rate", True), ("steps", True), ("steps", 10**8 + 1), ("steps", 10**400),
    ],
)  # fmt: skip
def test_impossible_events_are_refused(key, value):
    facts = ledger().to_json()
    facts["events"][1][key] = value
    with refuses("odd", key):
        audit(resealed(facts), "odd")


def test_as_many_steps_as_an_audit_bears_are_allowed():
    assert Event("poisson_subsampled_gaussian", "net", 1.0, 1.0, 0.01, 10**8).steps == 10**8


def test_too_many_steps_are_refused_by_their_limit():
    with refuses("'sgd'", "1000000000", "100,000,000"):
        Event("poisson_subsampled_gaussian", "sgd", 1.0, 1.0, 0.1, 10**9)


@pytest.mark.parametrize("key", ["coordinates", "recipe", "provenance", "events"])
@pytest.mark.parametrize("value", [5, None, True, "text"])
def test_what_is_of_another_type_is_named(key, value):
    with refuses("odd.json", key, repr(value)):
        Ledger.from_json(resealed(ledger().to_json() | {key: value}), "odd.json")


@pytest.mark.parametrize(("key", "value"), [("recipe", []), ("provenance", [1]), ("coordinates", [[]]), ("events", {})])
def test_an_object_is_no_list(key, value):
    with pytest.raises(UserError, match=rf"^odd\.json: {key} "):
        Ledger.from_json(resealed(ledger().to_json() | {key: value}), "odd.json")


def test_a_gaussian_is_one_full_batch_step():
    for change in ({"sample_rate": 0.5}, {"steps": 2}):
        with pytest.raises(UserError):
            Event("gaussian", "g", 1.0, 1.0, **change)


def test_missing_and_unknown_keys_and_other_relations():
    facts = ledger().to_json()
    with refuses("events"):
        Ledger.from_json(resealed({k: v for k, v in facts.items() if k != "events"}))
    with refuses("note"):
        Ledger.from_json(resealed(facts | {"note": "hi"}))
    with pytest.raises(UserError, match="neighbouring_relation"):
        Ledger.from_json(resealed(facts | {"neighbouring_relation": "replace_one"}))
    for change in (
        {"shape": []},
        {"shape": [1, 8, 0]},
        {"shape": [1, 8, "8"]},
        {"num_classes": 0},
        {"num_classes": 1.5},
    ):
        with refuses(*change, *map(repr, change.values())):
            Ledger.from_json(resealed(facts | change))
    for change in (
        {"n": 0}, {"n": True}, {"n": 10.0}, {"n": None}, {"n": "10"}, {"delta": 0}, {"delta": 1}, {"delta": "1e-5"},
        {"delta": True}, {"target_epsilon": -1.0}, {"target_epsilon": None}, {"target_epsilon": "1"},
        {"target_epsilon": True}, {"target_epsilon": 10**400}, {"target_epsilon": math.nan},
    ):  # fmt: skip
        with refuses(*change, "positive"):
            Ledger.from_json(resealed(facts | change))
    with refuses("accountant", "rdp, prv, pld", "'gdp'"):
        Ledger.from_json(resealed(facts | {"accountant": "gdp"}))
    with refuses("noise", "repeatable, secret", "'none'"):
        Ledger.from_json(resealed(facts | {"noise": "none"}))


@pytest.mark.parametrize(
    "change", [{"version": None, "neighbouring_relation": "add_or_remove_one"}, {"version": 1}, {"version": 2.0}]
)
def test_a_ledger_of_an_older_version_is_refused_and_says_so(change):
    """It was sealed well, by code that knew neither shape nor noise. The version is an int, which 2.0 is not."""
    facts = {key: item for key, item in (ledger().to_json() | change).items() if item is not None}
    del facts["shape"]
    with pytest.raises(
        UserError, match=rf"old/ledger\.json .*version \({change['version'] or 'none, add_or_remove_one'}.*train"
    ) as error:
        audit(resealed(facts), "old/ledger.json")
    assert "\n" not in str(error.value)


def test_planned_and_recorded_events_agree():
    mechanism = Mechanism("net", "poisson_subsampled_gaussian", 0.01, 10, noise_ratio=2.0, sensitivity=0.5)
    assert mechanism.event(3.0) == Event("poisson_subsampled_gaussian", "net", 6.0, 0.5, 0.01, 10)
    assert mechanism.event(3.0, steps=0).steps == 0
