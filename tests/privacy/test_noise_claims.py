"""What all mechanisms together promise of their randomness: no stream is drawn from twice."""

import torch
from torch import nn

from dpdm.data import ImageSet
from dpdm.privacy import (
    Budget,
    DpSgdParams,
    Ledger,
    Mechanism,
    PoissonBlocks,
    PrivateData,
    PublicRows,
    Randomness,
    ShardBlocks,
)

TWICE = ("first", "second")


def test_no_stream_is_drawn_from_twice(digits64: ImageSet, monkeypatch):
    """Two mechanisms of every kind, several steps, several chunks: each draw has a key that no other draw has."""
    drawn, subkey = [], Randomness._subkey

    def spy(self, name, index):
        drawn.append((name, subkey(self, name, index)))
        return drawn[-1][1]

    monkeypatch.setattr(Randomness, "_subkey", spy)
    monkeypatch.setattr("dpdm.privacy.door.calibrate", lambda *_: 1.0)  # how much noise does not matter here
    sgd = DpSgdParams(expected_batch_size=16, steps=3, max_grad_norm=1.0, max_physical_batch_size=8)
    poisson = PoissonBlocks(steps=3, max_block_norm=1.0, expected_batch_size=16)
    shards = ShardBlocks(steps=3, max_block_norm=1.0, shards=4)
    plan = [
        mechanism
        for one in TWICE
        for mechanism in (
            Mechanism.gaussian(f"{one} sum"), sgd.mechanism(f"{one} net", 64),
            poisson.mechanism(f"{one} blocks", 64), shards.mechanism(f"{one} shards", 64),
        )
    ]  # fmt: skip
    ledger = Ledger(64, 1e-3, 10.0, "rdp")
    private = PrivateData(digits64, plan, Budget(10.0, 1e-3), "rdp", Randomness.repeatable(0), ledger)
    net, fakes = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.zeros(3, 1, 8, 8)
    for one in TWICE:
        private.release_sum(f"{one} sum", lambda x, y: x.flatten(1) + torch.rand(64), 1.0)
        dp = private.dpsgd(f"{one} net", net, torch.optim.SGD(net.parameters(), lr=0.1), sgd)

        def losses(x, y, dp=dp):
            return dp.module(x + torch.randn(x.shape)).square().sum(1)

        for step in dp:
            step.update(losses, PublicRows(losses, fakes, torch.zeros(3, dtype=torch.long)))
        for kind, params in (("blocks", poisson), ("shards", shards)):
            for step in private.block_gradients(f"{one} {kind}", params):
                step.release(fakes, lambda fakes, *_: torch.zeros_like(fakes))
    # Statistics are tried on public random records first, one by one, by draws of their own.
    of_records = [(name, key) for name, key in drawn if name != "draws of one"]
    assert {name for name, _ in of_records} == {"draws", "noise", "poisson", "private", "public", "shard", "shards"}
    assert len({key for _, key in of_records}) == len(of_records)
