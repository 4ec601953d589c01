"""The privacy core: sampling, clipping, noise, accounting and the ledger live here and nowhere else."""

from dpdm.privacy.accounting import (
    Budget,
    Mechanism,
    budget_shares,
    calibrate,
    epsilon_spent,
    epsilons_spent,
    settled,
)
from dpdm.privacy.block import PoissonBlocks, ShardBlocks
from dpdm.privacy.door import PrivateData
from dpdm.privacy.dpsgd import DpSgd, DpSgdParams, PublicRows
from dpdm.privacy.ledger import Event, Ledger
from dpdm.privacy.noise import Randomness, clipped_rows

__all__ = [
    "Budget", "DpSgd", "DpSgdParams", "Event", "Ledger", "Mechanism", "PoissonBlocks", "PrivateData", "PublicRows",
    "Randomness", "ShardBlocks",
    "budget_shares", "calibrate", "clipped_rows", "epsilon_spent", "epsilons_spent", "settled",
]  # fmt: skip
