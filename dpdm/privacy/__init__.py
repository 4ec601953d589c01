"""The privacy core: sampling, clipping, noise, accounting and the ledger live here and nowhere else."""

from dpdm.privacy.accounting import Budget, Mechanism, calibrate, epsilon_spent
from dpdm.privacy.door import PrivateData
from dpdm.privacy.dpsgd import DpSgd, DpSgdParams
from dpdm.privacy.ledger import Event, Ledger

__all__ = [
    "Budget", "DpSgd", "DpSgdParams", "Event", "Ledger", "Mechanism", "PrivateData", "calibrate", "epsilon_spent",
]  # fmt: skip
