"""The audit: epsilon from a ledger alone, under both accountants."""

import math
from typing import Any

from dpdm.privacy.accounting import epsilon_along, epsilon_spent
from dpdm.privacy.ledger import NEIGHBOURING_RELATION, Ledger


def audit(value: dict[str, Any], origin: str) -> dict[str, Any]:
    """Re-derives epsilon from the JSON of a ledger.

    Passed means: at most the target under the declared accountant *and* under PRV (the tighter one, so that
    a fault of the declared one would show).

    Returns:
        The ledger's facts and events, epsilon_rdp and epsilon_prv ("inf" for no bound), and `passed`.

    Raises:
        UserError: the ledger is not one, or was changed after it was written.
    """
    ledger = Ledger.from_json(value, origin)
    spent = {name: epsilon_spent(ledger.events, ledger.delta, name) for name in ("rdp", "prv")}
    passed = max(spent[ledger.accountant], spent["prv"]) <= ledger.target_epsilon
    facts = ledger.to_json()
    return {
        "coordinates": facts["coordinates"],
        "recipe": facts["recipe"],
        "provenance": facts["provenance"],
        "neighbouring_relation": NEIGHBOURING_RELATION,
        "n": ledger.n,
        "delta": ledger.delta,
        "accountant": ledger.accountant,
        "target_epsilon": _json(ledger.target_epsilon),
        "epsilon_rdp": _json(spent["rdp"]),
        "epsilon_prv": _json(spent["prv"]),
        "events": facts["events"],
        "passed": passed,
    }


def spending(value: dict[str, Any], origin: str) -> dict[str, Any]:
    """How epsilon grew over a run, from the JSON of its ledger; by the RDP accountant, whichever the run declared.

    Returns:
        The run's coordinates, and two lists of equal length, `steps` and `epsilon`: see `epsilon_along`.

    Raises:
        UserError: the ledger is not one, or was changed after it was written.
    """
    ledger = Ledger.from_json(value, origin)
    along = epsilon_along(ledger.events, ledger.delta)
    return {
        "coordinates": dict(ledger.coordinates),
        "steps": [steps for steps, _ in along],
        "epsilon": [epsilon for _, epsilon in along],
    }


def describe_audit(row: dict[str, Any], origin: str) -> str:
    """One line of a terminal."""
    verdict = "passed" if row["passed"] else "FAILED"
    return (
        f"{verdict}  target epsilon {row['target_epsilon']}, spent {_text(row['epsilon_rdp'])} (RDP) "
        f"{_text(row['epsilon_prv'])} (PRV) at delta {row['delta']:.3g}  {origin}"
    )


def _json(epsilon: float) -> float | str:
    return "inf" if math.isinf(epsilon) else epsilon


def _text(epsilon: float | str) -> str:
    return epsilon if isinstance(epsilon, str) else f"{epsilon:.4f}"
