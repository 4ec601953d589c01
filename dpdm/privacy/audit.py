"""The audit: epsilon from only a ledger, under three accountants, and its events in dp-accounting's form."""

import math
from typing import Any

from dpdm.errors import UserError
from dpdm.privacy.accounting import Budget, audited_under, budget_shares, epsilons_spent
from dpdm.privacy.ledger import ACCOUNTANTS, Event, Ledger

_PUBLISHED = (
    "coordinates", "recipe", "provenance", "neighbouring_relation", "noise", "n", "delta", "accountant",
    "target_epsilon",
)  # fmt: skip


def audit(value: dict[str, Any], origin: str) -> dict[str, Any]:
    """Re-derives epsilon from the JSON of a ledger.

    A run passes if epsilon is at most the target under the declared accountant *and* under PRV and PLD (the tight ones,
    which would show a fault of the declared one). `dpdm.plan.check_recipe` compares the events with the recipe.

    Returns:
        The ledger's facts and events, epsilon_rdp, epsilon_prv and epsilon_pld ("inf" for no bound), `budget_shares`
        by event, and `passed`.

    Raises:
        UserError: it is no ledger, is of an older version, was changed after it was written, or has a budget or events
            for which an accountant has no answer.
    """
    ledger = Ledger.from_json(value, origin)
    try:
        Budget(ledger.target_epsilon, ledger.delta)
        spent = epsilons_spent(ledger.events, ledger.delta)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    facts = ledger.to_json()
    return {
        **{key: facts[key] for key in _PUBLISHED},
        **{f"epsilon_{name}": "inf" if math.isinf(epsilon) else epsilon for name, epsilon in spent.items()},
        "events": facts["events"],
        "budget_shares": budget_shares(ledger.events, ledger.delta),
        "public_data": ", ".join(ledger.public_data),
        "passed": max(spent[name] for name in audited_under(ledger.accountant)) <= ledger.target_epsilon,
    }


def exported(value: dict[str, Any], origin: str) -> dict[str, Any]:
    """A run's events as a DpEvent of Google's dp-accounting: objects that name its classes and their fields.

    dp-accounting has no event for drawing one of many shards. Such an event becomes an UnsupportedDpEvent, which its
    accountants refuse.

    Raises:
        UserError: as `audit`.
    """
    ledger = Ledger.from_json(value, origin)
    return {
        "coordinates": dict(ledger.coordinates),
        "delta": ledger.delta,
        "event": {"class_name": "ComposedDpEvent", "events": [_dp_event(event) for event in ledger.events]},
    }


def _dp_event(event: Event) -> dict[str, Any]:
    if event.mechanism == "categorical_subsampled_gaussian":
        return {"class_name": "UnsupportedDpEvent"}
    one: dict[str, Any] = {"class_name": "GaussianDpEvent", "noise_multiplier": event.noise_multiplier}
    if event.mechanism == "gaussian":
        return one
    sampled = {"class_name": "PoissonSampledDpEvent", "sampling_probability": event.sample_rate, "event": one}
    return {"class_name": "SelfComposedDpEvent", "event": sampled, "count": event.steps}


def describe_audit(row: dict[str, Any], origin: str) -> str:
    """One line of a terminal."""
    verdict = "passed" if row["passed"] else "FAILED"
    spent = ", ".join(f"{float(row[f'epsilon_{name}']):.4f} ({name.upper()})" for name in ACCOUNTANTS)
    recipe = "" if row["recipe_checked"] else ", events NOT compared with the recipe"
    target = f"target epsilon {row['target_epsilon']}, spent {spent} at delta {row['delta']:.3g}"
    shares = [f"{name} {share['rdp']:.1%} / {share['prv']:.1%}" for name, share in row["budget_shares"].items()]
    parts = f", shares of the budget (RDP / PRV): {', '.join(shares)}" if shares else ""
    public = f", uses public data: {row['public_data']}" if row.get("public_data") else ""
    return f"{verdict}  {target}{parts}{public}{recipe}  {origin}"
