"""What a one-shot release promises: every record once, clipped, and the noise it declares."""

import collections
import copy
import functools
import math
import pickle
import random
import types

import numpy as np
import pytest
import torch
from refusals import refuses

from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.privacy import Budget, DpSgdParams, Ledger, Mechanism, PrivateData, Randomness
from dpdm.privacy.door import RELEASE_CHUNK


def images(n: int, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    return ImageSet(rng.integers(0, 256, (n, 1, 3, 3), np.uint8), rng.integers(0, 2, n).astype(np.int64), 2)


def door(
    data: ImageSet, *names: str, epsilon: float = math.inf, shares=None, seed: int = 0, sensitivities=None
) -> PrivateData:
    shares = shares or [1 / len(names)] * len(names)
    sensitivities = sensitivities or [1.0] * len(names)
    plan = [Mechanism.gaussian(*planned) for planned in zip(names, shares, sensitivities, strict=True)]
    ledger = Ledger(data.meta.n, 1e-4, epsilon, "rdp")
    return PrivateData(data, plan, Budget(epsilon, 1e-4), "rdp", Randomness.repeatable(seed), ledger)


def pixels(x, y):
    return x.flatten(1)


@pytest.mark.parametrize("n", [1, RELEASE_CHUNK - 1, RELEASE_CHUNK, 2 * RELEASE_CHUNK + 5])
def test_every_record_is_used_exactly_once(n, spied):
    """Records carry their index in the pixels; a release over n records must show each once."""
    index = np.arange(n)
    pattern = np.stack([index % 256, index // 256, np.zeros_like(index)], 1).astype(np.uint8).reshape(n, 1, 1, 3)
    data = ImageSet(pattern, np.zeros(n, np.int64), 1)
    shown = []

    def spy(x, y):
        raw = ((x + 1) * 127.5).round().long().flatten(1)
        shown.extend((raw[:, 0] + 256 * raw[:, 1]).tolist())
        return torch.ones(len(y), 1)

    total = door(data, "count").release_sum("count", spy, 1.0)
    assert sorted(shown[-n:]) == list(range(n))  # before them come five random ones
    assert len(shown) == n + 5
    assert float(total) == n


@pytest.mark.parametrize("bound", [0.1, 1.0, 100.0])
def test_sum_equals_brute_force_with_clipping(bound):
    data = images(700)
    total = door(data, "s", sensitivities=[bound]).release_sum("s", pixels, bound)
    x = (torch.from_numpy(data.images).double() / 127.5 - 1).flatten(1)
    clipped = x * (bound / x.norm(dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(total, clipped.sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("grouped", [False, True])
def test_second_moment_equals_brute_force(grouped):
    data, bound = images(600), 1.5

    def vectors(x, y):
        v = x.flatten(1)
        return torch.nn.functional.one_hot(y, 2).float()[:, :, None] * v[:, None] if grouped else v

    total = door(data, "m", sensitivities=[bound**2]).release_second_moment("m", vectors, bound)
    x = (torch.from_numpy(data.images).double() / 127.5 - 1).flatten(1)
    x = x * (bound / x.norm(dim=1, keepdim=True)).clamp(max=1)
    if grouped:
        expected = torch.stack([x[data.labels == c].T @ x[data.labels == c] for c in (0, 1)])
    else:
        expected = x.T @ x
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_one_record_moves_a_release_by_at_most_its_declared_sensitivity(seed, bound):
    data = images(40, seed)
    without = ImageSet(data.images[:-1], data.labels[:-1], 2)
    for release in ("release_sum", "release_second_moment"):
        sensitivity = bound if release == "release_sum" else bound**2
        doors = [door(d, "s", sensitivities=[sensitivity]) for d in (data, without)]
        totals = [getattr(d, release)("s", pixels, bound) for d in doors]
        assert doors[0].ledger.events[0].sensitivity == sensitivity
        distance = float((totals[0] - totals[1]).norm())
        assert distance <= sensitivity * (1 + 1e-5)
        assert distance > 0.9 * min(sensitivity, 0.2)  # not vacuous


def test_observed_noise_is_the_declared_noise():
    data = images(10)
    d = door(data, "a", "b", epsilon=1.0, shares=[0.2, 0.8], sensitivities=[3.0, 0.5])
    for name, bound in (("a", 3.0), ("b", 0.5)):
        noise = d.release_sum(name, lambda x, y: torch.zeros(len(y), 40_000), bound)
        event = d.ledger.events[-1]
        assert event.name == name
        assert event.sensitivity == bound
        assert event.noise_multiplier == d.noise_multiplier(name) > 1
        assert float(noise.std()) == pytest.approx(event.noise_multiplier * bound, rel=0.01)  # std error 0.35 %
        assert abs(float(noise.mean())) < 5 * float(noise.std()) / 200
    assert d.noise_multiplier("a") / d.noise_multiplier("b") == pytest.approx(2)  # 1/sqrt(.2) : 1/sqrt(.8)


def test_second_moment_noise_is_symmetric_and_as_declared():
    d = door(images(10), "m", epsilon=1.0, sensitivities=[4.0])
    noise = d.release_second_moment("m", lambda x, y: torch.zeros(len(y), 300), 2.0)
    assert torch.equal(noise, noise.T)
    std = d.noise_multiplier("m") * 4.0
    assert float(noise.diagonal().std()) == pytest.approx(std, rel=0.15)
    upper = noise[torch.triu(torch.ones(300, 300), 1).bool()]
    assert float(upper.std()) == pytest.approx(std / math.sqrt(2), rel=0.02)


def test_two_releases_have_independent_noise():
    d = door(images(10), "a", "b", epsilon=1.0)
    a, b = (d.release_sum(name, lambda x, y: torch.zeros(len(y), 20_000), 1.0) for name in ("a", "b"))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.04
    again = door(images(10), "a", "b", epsilon=1.0, seed=1)
    other = again.release_sum("a", lambda x, y: torch.zeros(len(y), 20_000), 1.0)
    assert abs(float(torch.corrcoef(torch.stack([a, other]))[0, 1])) < 0.04


# --- one record at a time ----------------------------------------------------------------------------------------


def sorted_chunk(x, y):
    return x.flatten(1).sort(0).values


def centred(x, y):
    return x.flatten(1) - x.flatten(1).mean(0)


def rarity(x, y):
    return x.flatten(1) / torch.bincount(y, minlength=2)[y][:, None]


@pytest.mark.parametrize("statistic", [pixels, sorted_chunk, centred, rarity])
def test_a_statistic_cannot_see_another_record(statistic):
    """Whatever it does to its chunk, the release is the sum over records of what it says of each alone."""
    data = images(40)
    total = door(data, "s").release_sum("s", statistic, 1.0)
    x = torch.from_numpy(data.images).float() / 127.5 - 1
    y = torch.from_numpy(data.labels)
    alone = torch.cat([statistic(x[i : i + 1], y[i : i + 1]) for i in range(40)]).double()
    alone = alone * (1 / alone.norm(dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(total, alone.sum(0), rtol=1e-5, atol=1e-6)
    without = ImageSet(data.images[1:], data.labels[1:], 2)
    assert float((total - door(without, "s").release_sum("s", statistic, 1.0)).norm()) <= 1


def remembering():
    """A label histogram in a closure: no vmap, and every record adds to what the next ones say."""
    seen = torch.zeros(2)

    def statistic(x, y):
        seen.add_(torch.nn.functional.one_hot(y, 2)[0])
        return x.flatten(1).clone()

    return statistic


def in_numpy(x, y):
    return torch.from_numpy(np.sort(x.numpy().reshape(len(x), -1), axis=1))


@pytest.mark.parametrize("make", [remembering, lambda: in_numpy])
def test_what_cannot_be_vectorized_is_shown_records_one_by_one(make, spied):
    statistic, shown = make(), []

    def spy(x, y):
        shown.append(x.shape)
        return statistic(x, y)

    with pytest.warns(UserWarning, match="s: its statistic runs record by record"):
        total = door(images(7), "s", sensitivities=[100.0]).release_sum("s", spy, 100.0)
    assert total.shape == (9,)
    assert shown[-7:] == [(1, 1, 3, 3)] * 7


def in_a_buffer():
    """One array that every call fills anew."""
    buffer = np.zeros((1, 9))

    def statistic(x, y):
        buffer[...] = x.numpy().reshape(1, -1)
        return torch.from_numpy(buffer)

    return statistic


@pytest.mark.filterwarnings("ignore:s. its statistic runs record by record")
def test_a_buffer_that_a_statistic_returns_is_copied(spied):
    data = images(20)
    total, plain = (door(data, "s", sensitivities=[100.0]).release_sum("s", f, 100.0) for f in (in_a_buffer(), pixels))
    torch.testing.assert_close(total, plain)


def of_blank_images():
    """A running mean that leaves out what is not bright."""
    seen = []

    def statistic(x, y):
        if float(x.max()) < 0.6:
            return torch.zeros(1, 9)
        seen.append(x.flatten(1))
        return x.flatten(1) - torch.stack(seen).mean(0)

    return statistic


def first_of_each_class():
    seen = set()

    def statistic(x, y):
        new = int(y) not in seen
        seen.add(int(y))
        return x.flatten(1) * new

    return statistic


def counting():
    calls = []
    return lambda x, y: x.flatten(1) * (calls.append(1) or len(calls))


def from_pythons_generator():
    """Which nothing here can reach."""
    return lambda x, y: x.flatten(1) * random.random()


def extreme(of):
    """The least or largest mean so far, which only some records change."""

    def make():
        seen = {}

        def statistic(x, y):
            seen["mean"] = of(seen.get("mean", float(x.mean())), float(x.mean()))
            return x.flatten(1)

        return statistic

    return make


@pytest.mark.parametrize(
    "make",
    [
        first_of_each_class, counting, in_a_buffer, of_blank_images, from_pythons_generator, extreme(min), extreme(max)
    ],
)  # fmt: skip
def test_a_statistic_that_remembers_is_refused_before_it_sees_a_record(make, monkeypatch):
    d = door(images(20), "s")
    monkeypatch.setattr(d, "_batch", None)
    with refuses("s", "remembers"):
        d.release_sum("s", make(), 1.0)


class Encoder:
    """A plain object around a network whose running statistics follow what it sees."""

    def __init__(self):
        self.nets = {"first": [torch.nn.BatchNorm2d(1)]}

    def __call__(self, x):
        return self.nets["first"][0](x).detach().flatten(1)


ENCODER = Encoder()


def in_a_closure():
    norm = torch.nn.BatchNorm2d(1)
    return lambda x, y: norm(x).detach().flatten(1)


def in_an_object():
    encoder = Encoder()
    return lambda x, y: encoder(x)


def in_a_global():
    return lambda x, y: next(ENCODER(part) for part in (x,))


def in_an_argument():
    return functools.partial(lambda encoder, x, y: encoder(x), Encoder())


def in_a_global_of_a_partial():
    return functools.partial(lambda part, x, y: ENCODER(x), 0)


def in_another_function():
    inner = in_an_object()
    return lambda x, y: inner(x, y)


def test_a_statistic_may_use_a_module_in_evaluation_mode():
    norm = torch.nn.BatchNorm2d(1).eval()
    assert door(images(20), "s").release_sum("s", lambda x, y: norm(x).detach().flatten(1), 1.0).ndim == 1


@pytest.mark.filterwarnings("ignore:s. its statistic runs record by record")
def test_a_shape_that_follows_from_the_records_is_refused():
    """Sums of two shapes would broadcast: a record would count once for every class."""
    data = ImageSet(np.full((1000, 1, 3, 3), 255, np.uint8), np.repeat([0, 1], 500), 2)
    with pytest.raises(UserError, match=r"s: a statistic must have one shape for all records|its statistic failed"):
        door(data, "s").release_sum("s", lambda x, y: torch.bincount(y)[None].float(), 1.0)


def noisy(x, y):
    return torch.rand(1, 4)


def noisy_in_a_loop(x, y):
    return torch.rand(1, 4) + float(x.numpy().sum()) * 0


@pytest.mark.filterwarnings("ignore:s. its statistic runs record by record")
@pytest.mark.parametrize("statistic", [noisy, noisy_in_a_loop])
def test_what_a_statistic_draws_is_drawn_per_record_and_repeats(statistic, spied):
    before = torch.get_rng_state()
    kept = []
    for _ in range(2):
        seen = []

        def spy(x, y, seen=seen):
            v = statistic(x, y)
            seen.append(v)
            return v

        kept.append(door(images(600), "s", sensitivities=[10.0]).release_sum("s", spy, 10.0))
    assert torch.equal(*kept)
    assert float(kept[0].std()) > 0
    assert kept[0].mean() / 600 == pytest.approx(0.5, abs=0.05)  # one draw for all would be 0 to 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.bfloat16, torch.float16, torch.float64])
def test_statistics_of_any_real_dtype(dtype):
    data = images(30)
    d = door(data, "s", sensitivities=[100.0])
    total = d.release_sum("s", lambda x, y: (x.flatten(1) > 0).to(dtype), 100.0)
    assert total.dtype == torch.float64
    assert total.tolist() == (data.images.reshape(30, -1) >= 128).sum(0).tolist()


def test_a_statistic_of_one_number_per_record():
    assert float(door(images(30), "s").release_sum("s", lambda x, y: torch.ones(len(y)), 1.0)) == 30
    with refuses("second moment"):
        door(images(30), "s").release_second_moment("s", lambda x, y: torch.ones(len(y)), 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("release", ["release_sum", "release_second_moment"])
def test_rounding_does_not_widen_the_bound(dtype, release):
    """In the statistic's dtype the sum of 20,000 records would move by 3 bounds (bfloat16) or 1.0003 (float32)."""
    n = 20_000
    data = ImageSet(np.full((n, 1, 1, 1), 255, np.uint8), np.zeros(n, np.int64), 2)
    fewer = ImageSet(data.images[1:], data.labels[1:], 2)
    bound = 1.0 / 3.0

    def far(x, y):
        return (x.flatten(1) * torch.tensor([1.0, 0.7, 0.3])).to(dtype) * 1.7

    totals = [getattr(door(d, "s", sensitivities=[bound if release == "release_sum" else bound**2]), release)(
        "s", far, bound
    ) for d in (data, fewer)]  # fmt: skip
    moved = float((totals[0] - totals[1]).norm())
    limit = bound if release == "release_sum" else bound**2
    assert 0.999 * limit < moved <= limit * (1 + 1e-9)


def test_a_statistic_that_fails_is_a_sentence():
    for statistic, reason in (
        (lambda x, y: x.flatten(1) @ torch.ones(5, 5), "its statistic failed: RuntimeError"),
        (lambda x, y: [1.0], "one vector per record.*got list"),
        (lambda x, y: torch.ones(1, 3, dtype=torch.complex64), "got torch.complex64"),
        (lambda x, y: torch.ones(()), r"one vector per record"),
        (lambda x, y: x.flatten(1).to_sparse(), "dense.*sparse_coo"),
        (None, "failed.*NoneType"),
    ):
        with pytest.raises(UserError, match=rf"^s: .*{reason}"):
            door(images(10), "s").release_sum("s", statistic, 1.0)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_door_cannot_be_copied(copier):
    """A copy would release again, with the same noise and no event."""
    with refuses("PrivateData"):
        copier(door(images(10), "s", epsilon=1.0))


def test_two_mechanisms_of_one_plan_share_no_noise():
    d = door(images(10), "a", "b", epsilon=1.0)
    a, b = (d.release_sum(name, lambda x, y: torch.zeros(1, 2000), 1.0) for name in ("a", "b"))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.1


def test_infinite_epsilon_is_the_same_path_without_noise():
    d = door(images(10), "s")
    assert torch.equal(d.release_sum("s", lambda x, y: torch.zeros(len(y), 5), 1.0), torch.zeros(5).double())
    assert d.ledger.events[0].noise_multiplier == 0


def test_the_event_is_written_before_the_release():
    d = door(images(10), "s", epsilon=1.0)

    def statistic(x, y):
        assert [event.name for event in d.ledger.events] == ["s"]
        return x.flatten(1)

    d.release_sum("s", statistic, 1.0)


def test_only_planned_mechanisms_and_each_once():
    d = door(images(10), "s", epsilon=1.0)
    with refuses("'t'", "plan"):
        d.release_sum("t", pixels, 1.0)
    d.release_sum("s", pixels, 1.0)
    with pytest.raises(UserError, match="served already"):
        d.release_sum("s", pixels, 1.0)
    assert len(d.ledger.events) == 1
    net = torch.nn.Linear(1, 1)
    with refuses("gaussian"):
        door(images(10), "s").dpsgd(
            "s", net, torch.optim.SGD(net.parameters()), DpSgdParams(expected_batch_size=5, steps=1, max_grad_norm=1.0)
        )


def test_a_release_of_another_sensitivity_than_planned_is_refused():
    """The plan is what `check` shows and what the audit expects: a bound is a public fact of it."""
    for release, bound in (("release_sum", 2.0), ("release_second_moment", 3.0)):
        d = door(images(10), "s", sensitivities=[3.0])
        with pytest.raises(UserError, match=rf"'s'.* 3\b.* {2 if bound == 2 else 9}\b"):
            getattr(d, release)("s", pixels, bound)
        assert d.ledger.events == []


def test_dpsgd_with_another_recipe_than_planned_is_refused():
    data = images(10)
    planned = DpSgdParams(expected_batch_size=5, steps=3, max_grad_norm=1.0)
    d = PrivateData(
        data,
        [planned.mechanism("n", 10)],
        Budget(1.0, 1e-3),
        "rdp",
        Randomness.repeatable(0),
        Ledger(10, 1e-3, 1.0, "rdp"),
    )
    net = torch.nn.Linear(1, 1)
    for change in ({"steps": 4}, {"expected_batch_size": 6}):
        with pytest.raises(UserError, match=r"q = .*steps = "):
            d.dpsgd("n", net, torch.optim.SGD(net.parameters()), planned.model_copy(update=change))
        d._served.clear()
    wider = planned.model_copy(update={"max_grad_norm": 2.0})
    with pytest.raises(UserError, match=r"'n'.* 1\b.* 2\b"):
        d.dpsgd("n", net, torch.optim.SGD(net.parameters()), wider)


def test_non_finite_or_malformed_statistics_are_refused():
    with pytest.raises(UserError, match="not finite"):
        door(images(10), "s").release_sum("s", lambda x, y: x.flatten(1) * math.nan, 1.0)
    with pytest.raises(UserError, match="one vector per record"):
        door(images(10), "s").release_sum("s", lambda x, y: x.flatten(1).sum(0), 1.0)


def test_a_used_ledger_is_refused():
    d = door(images(10), "s", epsilon=1.0)
    d.release_sum("s", pixels, 1.0)
    with pytest.raises(UserError, match="empty ledger"):
        PrivateData(images(10), [Mechanism.gaussian("s")], d.budget, "rdp", Randomness.repeatable(0), d.ledger)


class Forgetful(torch.nn.Module):
    """Keeps a running mean by putting another tensor in its place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean().detach()
        return x


class Shared:
    """Holds a network on the class, which an inherited method uses."""

    net = torch.nn.BatchNorm2d(1)

    def vector(self, x):
        return self.net(x).detach().flatten(1)


class Inherited(Shared):
    """Nothing more."""


def by_another_tensor():
    front = Forgetful()
    return lambda x, y: front(x).flatten(1)


def by_a_keyword():
    def statistic(x, y, *, encoder=Encoder()):  # noqa: B008
        return encoder(x)

    return statistic


def by_a_class():
    shared = Inherited()
    return lambda x, y: shared.vector(x)


def in_a_queue():
    held = collections.deque([types.MappingProxyType({"net": Encoder()})])
    return lambda x, y: held[0]["net"](x)


IN_PLACE = (
    in_a_closure, in_an_object, in_a_global, in_an_argument, in_a_global_of_a_partial, in_another_function,
    by_a_keyword, by_a_class, in_a_queue,
)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "trace"),
    [*((make, "running_mean") for make in IN_PLACE), (by_another_tensor, "front._buffers['mean']")],
)
def test_a_statistic_that_leaves_traces_in_a_module_is_refused_before_it_sees_a_record(make, trace, monkeypatch):
    d = door(images(20), "s")
    monkeypatch.setattr(d, "_batch", None)
    with refuses("s", trace):
        d.release_sum("s", make(), 1.0)


class Stubborn:
    """Answers no question about itself."""

    def __getattribute__(self, name):
        raise RuntimeError(name)


def test_what_cannot_be_looked_into_hides_nothing_and_is_no_fault():
    odd = [Stubborn(), torch.nn.LazyBatchNorm2d().eval()]
    for buffer in (torch.zeros(2).to_sparse(), torch.empty(2, device="meta"), torch.tensor([True])):
        odd.append(torch.nn.Module())
        odd[-1].register_buffer("held", buffer)
    assert door(images(20), "s").release_sum("s", lambda x, y: x.flatten(1) if odd else None, 1.0).ndim == 1
    norm = torch.nn.BatchNorm2d(1)
    with refuses("running_mean"):
        door(images(20), "s").release_sum("s", lambda x, y: norm(x).detach().flatten(1) if odd else None, 1.0)
