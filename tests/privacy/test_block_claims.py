"""What a noised gradient at generated images promises: sensitivity, sampling, noise, and no memory of secret draws."""

import math
import random

import numpy as np
import pytest
import torch
from refusals import refuses
from torch import nn

from dpdm.checkpoint import Checkpoint
from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.privacy import Budget, Ledger, PoissonBlocks, PrivateData, Randomness, ShardBlocks
from dpdm.privacy.block import BlockGradients
from dpdm.progress import Log

FAKES = torch.zeros(3, 1, 2, 2)


def random_images(n: int, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    return ImageSet(rng.integers(0, 256, (n, 1, 2, 2), np.uint8), np.arange(n) % 2, 2)


def blocks(images: ImageSet, params, epsilon=math.inf, seed=0, prepare=None, checkpoint=None, keep=()):
    ledger = Ledger(images.meta.n, 1e-3, epsilon, "rdp")
    plan = [params.mechanism("g", images.meta.n)]
    door = PrivateData(
        images, plan, Budget(epsilon, 1e-3), "rdp", Randomness.repeatable(seed), ledger, checkpoint=checkpoint
    )
    return door.block_gradients("g", params, prepare, keep), ledger


@pytest.fixture
def untried(monkeypatch):
    """A gradient that counts its calls, or remembers by design, is not tried on random records."""
    monkeypatch.setattr(BlockGradients, "_test", lambda *_: None)


def spread(fakes, images, labels, state=None):
    """A gradient that moves a lot with every record."""
    return (100 * images.sum(0) + len(images) * torch.arange(12.0).view(3, 1, 2, 2)).expand(3, 1, 2, 2)


KINDS = [
    PoissonBlocks(steps=3, max_block_norm=0.5, expected_batch_size=5),
    ShardBlocks(steps=3, max_block_norm=0.5, shards=4),
]


@pytest.mark.parametrize("params", KINDS)
def test_one_record_moves_a_block_by_at_most_the_sensitivity(params):
    whole = random_images(20)
    less = ImageSet(whole.images[:-1], whole.labels[:-1], 2)
    moved = 0.0
    for seed in range(20):
        (a, ledger), (b, _) = blocks(whole, params, seed=seed), blocks(less, params, seed=seed)
        for x, y in zip(a, b, strict=True):
            difference = x.release(FAKES, spread) - y.release(FAKES, lambda *args: -spread(*args))
            moved = max(moved, float(difference.norm()))
    assert moved <= ledger.events[0].sensitivity * (1 + 1e-6)
    assert moved == pytest.approx(2 * params.max_block_norm)  # the bound is reached: a block and its opposite


def test_the_block_is_clipped_as_a_whole_and_left_alone_below_the_bound():
    params = PoissonBlocks(steps=2, max_block_norm=0.5, expected_batch_size=4)
    loop, _ = blocks(random_images(4), params)
    large, small = torch.full((3, 1, 2, 2), 7.0), torch.full((3, 1, 2, 2), 0.01)
    steps = iter(loop)
    out = next(steps).release(FAKES, lambda *_: large)
    assert float(out.norm()) == pytest.approx(0.5)
    torch.testing.assert_close(out / out.norm(), large / large.norm())
    assert torch.equal(next(steps).release(FAKES, lambda *_: small), small)


def test_a_gradient_that_edits_the_fakes_leaves_nothing_in_them():
    params = PoissonBlocks(steps=1, max_block_norm=0.5, expected_batch_size=20)
    loop, _ = blocks(random_images(20), params)
    fakes = torch.zeros(3, 1, 2, 2, requires_grad=True)
    next(iter(loop)).release(fakes, lambda held, images, *_: held.copy_(images[:3]))
    assert torch.equal(fakes, torch.zeros(3, 1, 2, 2))


@pytest.mark.parametrize("params", KINDS)
def test_the_noise_has_the_declared_standard_deviation(params):
    params = params.model_copy(update={"steps": 100})
    loop, ledger = blocks(random_images(20), params, epsilon=1.0)
    fakes = FAKES.repeat(20, 1, 1, 1)
    values = torch.stack([step.release(fakes, lambda fakes, *_: torch.zeros_like(fakes)) for step in loop])
    event = ledger.events[0]
    assert event.sensitivity == 2 * params.max_block_norm
    expected = event.noise_multiplier * event.sensitivity
    assert float(values.std()) == pytest.approx(expected, rel=0.01)  # 24,000 draws: std error 0.46 %
    assert float(values.mean()) == pytest.approx(0, abs=5 * expected / math.sqrt(values.numel()))
    flat = values.flatten(1)
    assert abs(float((flat[:-1] * flat[1:]).mean())) < 0.05 * expected**2  # every step has its own noise


@pytest.mark.usefixtures("untried")
def test_poisson_batches_draw_every_record_at_the_declared_rate():
    params = PoissonBlocks(steps=800, max_block_norm=1.0, expected_batch_size=2)
    images = ImageSet(np.arange(8, dtype=np.uint8).repeat(4).reshape(8, 1, 2, 2), np.zeros(8, np.int64), 1)
    seen = np.zeros(8)

    def count(fakes, x, y):
        seen[((x[:, 0, 0, 0] + 1) * 127.5).round().long().numpy()] += 1
        return torch.zeros_like(fakes)

    loop, ledger = blocks(images, params)
    for step in loop:
        step.release(FAKES, count)
    assert seen / 800 == pytest.approx(np.full(8, 0.25), abs=0.05)
    assert ledger.events[0].sample_rate == 0.25


def shards_of(images: ImageSet, shards: int, seed: int = 0) -> list[frozenset]:
    """Which pixel values were seen together, over many steps."""
    groups = set()

    def look(fakes, x, y, state):
        groups.add(frozenset(((x[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()))
        return torch.zeros_like(fakes)

    loop, _ = blocks(images, ShardBlocks(steps=300, max_block_norm=1.0, shards=shards), seed=seed)
    for step in loop:
        step.release(FAKES, look)
    return sorted(groups, key=sorted)


@pytest.mark.usefixtures("untried")
def test_shards_are_a_partition_that_one_record_less_changes_in_one_place():
    values = np.arange(40, dtype=np.uint8)
    images = ImageSet(values.repeat(4).reshape(40, 1, 2, 2), np.zeros(40, np.int64), 1)
    groups = shards_of(images, 4)
    assert sorted(v for group in groups for v in group) == values.tolist()
    less = shards_of(ImageSet(images.images[:-1], images.labels[:-1], 1), 4)
    assert less == sorted((group - {39} for group in groups), key=sorted)


@pytest.mark.usefixtures("untried")
def test_shards_are_drawn_uniformly():
    drawn = []
    params = ShardBlocks(steps=2000, max_block_norm=1.0, shards=4)
    loop, ledger = blocks(random_images(40), params, prepare=lambda x, y, shard: shard)

    def look(fakes, x, y, shard):
        drawn.append(shard)
        return torch.zeros_like(fakes)

    for step in loop:
        step.release(FAKES, look)
    assert np.bincount(drawn) / 2000 == pytest.approx(np.full(4, 0.25), abs=0.05)
    pairs = np.bincount(4 * np.array(drawn[:-1]) + drawn[1:], minlength=16) / 1999
    assert pairs == pytest.approx(np.full(16, 1 / 16), abs=0.03)  # which shard comes next, nobody knows
    assert ledger.events[0].mechanism == "categorical_subsampled_gaussian"
    assert ledger.events[0].sample_rate == 0.25


@pytest.mark.usefixtures("untried")
def test_a_step_leaves_no_trace_in_a_shards_state():
    """Which shards were drawn before is secret: what a step does to a critic must not reach a later step."""
    prepared = []

    def prepare(x, y, shard):
        prepared.append(shard)
        return {"visits": torch.zeros(1)}

    def visit(fakes, x, y, state):
        assert float(state["visits"]) == 0
        state["visits"] += 1
        return torch.zeros_like(fakes)

    loop, _ = blocks(random_images(20), ShardBlocks(steps=50, max_block_norm=1.0, shards=3), prepare=prepare)
    for step in loop:
        step.release(FAKES, visit)
    assert sorted(prepared) == [0, 1, 2]  # each shard once


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("params", KINDS)
def test_steps_are_counted_even_when_no_record_was_drawn(params):
    rare = params.model_copy(update={"steps": 30})
    loop, ledger = blocks(random_images(4), rare.model_copy(update={"shards": 4} if params is KINDS[1] else
                                                             {"expected_batch_size": 1}), seed=3)  # fmt: skip
    calls = []
    for step in loop:
        step.release(FAKES, lambda fakes, x, *_: calls.append(len(x)) or torch.ones_like(fakes))
    assert ledger.events[0].steps == 30
    assert len(calls) < 30  # some step drew nothing
    assert 0 not in calls


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(("params", "whole"), [(KINDS[0], {"expected_batch_size": 20}), (KINDS[1], {"shards": 1})])
def test_a_step_is_counted_before_its_records_are_seen(params, whole):
    loop, ledger = blocks(random_images(20), params.model_copy(update=whole))
    seen = []
    for step in loop:
        step.release(FAKES, lambda fakes, *_: seen.append(ledger.events[0].steps) or torch.ones_like(fakes))
        assert seen[-1] == step.index + 1


@pytest.mark.parametrize("params", KINDS)
def test_the_released_norm_is_of_the_noised_block(params):
    """What a method may log. The norm before noise would be a release outside the ledger."""
    loop, _ = blocks(random_images(20), params, epsilon=1.0)
    for step in loop:
        released = step.release(FAKES, spread)
        assert loop.released_grad_norm == pytest.approx(float(released.norm()))
        assert abs(float(released.norm()) - params.max_block_norm) > 0.01  # else the test could not tell


def test_the_fakes_are_shown_detached(spied):
    loop, _ = blocks(random_images(8), KINDS[0])
    fakes, shown = FAKES.clone().requires_grad_(True), []
    for step in loop:
        step.release(fakes, lambda f, *_: shown.append(f.requires_grad) or torch.ones_like(f))
    assert shown == [False] * len(shown)
    assert shown


def test_misuse_is_refused():
    images = random_images(8)
    loop, _ = blocks(images, KINDS[0])
    step = next(iter(loop))
    step.release(FAKES, spread)
    with pytest.raises(RuntimeError, match="only once"):
        step.release(FAKES, spread)
    loop, _ = blocks(images, PoissonBlocks(steps=3, max_block_norm=0.5, expected_batch_size=8))
    with pytest.raises(RuntimeError, match=r"a gradient \(2,\) for a block"):
        next(iter(loop)).release(FAKES, lambda *_: torch.ones(2))
    loop, _ = blocks(images, PoissonBlocks(steps=3, max_block_norm=0.5, expected_batch_size=8))
    with refuses("g, step 0"):
        next(iter(loop)).release(FAKES, lambda f, *_: torch.full_like(f, math.nan))
    with refuses("8"):
        PoissonBlocks(steps=1, max_block_norm=1.0, expected_batch_size=9).mechanism("g", 8)
    with refuses("shards", "9", "8"):
        ShardBlocks(steps=1, max_block_norm=1.0, shards=9).mechanism("g", 8)
    door = PrivateData(
        images,
        [KINDS[0].mechanism("g", 8)],
        Budget(1.0, 1e-3),
        "rdp",
        Randomness.repeatable(0),
        Ledger(8, 1e-3, 1.0, "rdp"),
    )
    with refuses("poisson_subsampled_gaussian"):
        door.block_gradients("g", KINDS[1])
    with refuses("g", "steps = 4"):
        door.block_gradients("g", KINDS[0].model_copy(update={"steps": 4}))


@pytest.mark.parametrize("params", KINDS)
def test_cut_and_continued_equals_uninterrupted(params, tmp_path):
    images, params = random_images(20), params.model_copy(update={"steps": 6})

    def of_its_state(fakes, images, labels, *state):
        if isinstance(params, ShardBlocks):
            fakes = fakes + 1e-3 * float(state[0])
        return spread(fakes, images, labels)

    def run(path, die_at=None):
        torch_net = nn.Linear(1, 1)
        nn.init.ones_(torch_net.weight)
        checkpoint = Checkpoint(path, "print", Log("test"), 0.0)
        loop, ledger = blocks(images, params, 2.0, prepare=lambda x, y, s: s, checkpoint=checkpoint, keep=[torch_net])
        for step in loop:
            if step.index == die_at:
                return None
            with torch.no_grad():
                torch_net.weight += step.release(FAKES, of_its_state).sum()
        return float(torch_net.weight.detach()), ledger.to_json()

    expected = run(None)
    assert run(tmp_path / "c.pt", 4) is None
    assert run(tmp_path / "c.pt") == expected


# --- what a gradient remembers ------------------------------------------------------------------------------------


def learning_critic():
    critic = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)

    def gradient(fakes, images, labels, *state):
        optimizer.zero_grad()
        critic(images.flatten(1)[:, :4]).mean().backward()
        optimizer.step()
        return torch.full_like(fakes, float(critic.weight.detach().sum()))

    return gradient


def own_generator():
    generator = torch.Generator().manual_seed(0)
    return lambda fakes, *_: torch.rand(fakes.shape, generator=generator)


def pythons_generator():
    """Which nothing here can reach."""
    return lambda fakes, *_: torch.full_like(fakes, random.random())


def own_buffer():
    """Never zeroed: the sum of all draws."""
    shift = torch.zeros_like(FAKES, requires_grad=True)

    def gradient(fakes, images, labels, *state):
        ((fakes + shift) * images.mean()).sum().backward()
        return shift.grad

    return gradient


def gradient_in_a_generator():
    """The raw gradient stays in the generator's weights."""
    weight = torch.ones(FAKES.shape, requires_grad=True)

    def gradient(fakes, images, labels, *state):
        made = weight * (fakes + 1)
        made.retain_grad()
        (made * images.mean()).sum().backward()
        return made.grad

    return gradient


def extreme(of):
    """The least or largest mean so far, which only some batches change."""

    def make():
        seen = {}

        def gradient(fakes, images, *_):
            seen["mean"] = of(seen.get("mean", float(images.mean())), float(images.mean()))
            return torch.zeros_like(fakes)

        return gradient

    return make


@pytest.mark.parametrize(
    "make",
    [
        learning_critic, own_generator, pythons_generator, own_buffer, gradient_in_a_generator, extreme(min),
        extreme(max),
    ],
)  # fmt: skip
@pytest.mark.parametrize("params", KINDS)
def test_a_gradient_that_remembers_is_refused_before_a_record_is_drawn(params, make, monkeypatch):
    loop, ledger = blocks(random_images(8), params)
    monkeypatch.setattr(loop, "_images", None)
    with refuses("g, step 0", "remembers"):
        next(iter(loop)).release(FAKES, make())
    assert ledger.events[0].steps == 0


def one_critic_for_all_shards():
    critic = nn.Linear(4, 1)

    def prepare(images, labels, shard):
        with torch.no_grad():
            critic.weight += images.mean()
        return critic

    return prepare


def of_own_draws():
    return lambda images, labels, shard: torch.full((3,), random.random())


@pytest.mark.parametrize("make", [one_critic_for_all_shards, of_own_draws])
def test_shards_prepared_by_one_another_are_refused(make, monkeypatch):
    loop, ledger = blocks(random_images(8), KINDS[1], prepare=make())
    monkeypatch.setattr(loop, "_images", None)
    with pytest.raises(UserError, match=r"g, step 0.*(remembers|preparation)"):
        next(iter(loop)).release(FAKES, lambda fakes, *_: torch.zeros_like(fakes))
    assert ledger.events[0].steps == 0


@pytest.mark.parametrize("still", [1, 2])
def test_a_preparation_that_looks_at_the_moving_generator_is_refused(still):
    """Its state would tell which shards were drawn before which step. A learning rate may begin at zero."""
    moving = torch.zeros(1)
    loop, ledger = blocks(random_images(8), KINDS[1], prepare=lambda images, labels, shard: images.mean() + moving)
    steps = iter(loop)
    for _ in range(still):
        next(steps).release(FAKES, lambda fakes, *_: torch.zeros_like(fakes))
    moving += 1
    with refuses(f"g, step {still}", "preparation"):
        next(steps).release(FAKES, lambda fakes, *_: torch.zeros_like(fakes))
    assert ledger.events[0].steps == still


@pytest.mark.parametrize("params", KINDS)
def test_a_gradient_that_leaves_traces_in_a_module_is_refused(params, monkeypatch):
    norm = nn.BatchNorm2d(1)
    loop, ledger = blocks(random_images(8), params)
    monkeypatch.setattr(loop, "_images", None)
    with refuses("g, step 0", "running_mean"):
        next(iter(loop)).release(FAKES, lambda fakes, images, *_: torch.zeros_like(fakes) + norm(images).mean())
    assert ledger.events[0].steps == 0


@pytest.mark.parametrize("params", KINDS)
def test_what_a_gradient_draws_repeats_and_differs_between_steps(params):
    def run():
        loop, _ = blocks(random_images(40), params)
        return [step.release(FAKES, lambda f, *_: torch.rand(f.shape) - 0.5) for step in loop]

    first, again = run(), run()
    assert all(map(torch.equal, first, again))
    assert len({tuple(block.flatten().tolist()) for block in first}) == len(first)


def test_a_gradient_must_be_a_tensor_and_fakes_real_numbers():
    loop, _ = blocks(random_images(8), KINDS[0])
    step = next(iter(loop))
    for gradient, found in ((None, "None"), (lambda *_: None, "NoneType"), (lambda f, *_: f.to_sparse(), "sparse_coo")):
        with pytest.raises(UserError, match=rf"^g, step 0: .*{found}"):
            step.release(FAKES, gradient)
    with refuses("torch.int64"):
        step.release(FAKES.long(), lambda f, *_: f)
