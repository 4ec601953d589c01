"""The white-box attack: what it finds on the real door, that broken doors break their claims, and what it refuses."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from dpdm.artifacts import sha256_of
from dpdm.attacks import bounds, white_box
from dpdm.attacks.white_box import Claim, Played, attack, attack_claim, claim_of, log_ratio, one_run_audit, play
from dpdm.data import ImageMeta
from dpdm.errors import UserError
from dpdm.method import prepare_run
from dpdm.privacy import (
    Budget,
    DpSgdParams,
    Event,
    Ledger,
    Mechanism,
    PoissonBlocks,
    Randomness,
    ShardBlocks,
    block,
    calibrate,
    door,
    dpsgd,
)
from dpdm.specs import RunSpec

pytestmark = pytest.mark.slow

CLAIMED = Budget(4.0, 1e-4)
LOGREG = {"network": "logreg", "lr": 1.0, "dp": {"expected_batch_size": 500, "steps": 4, "max_grad_norm": 0.5}}


def claim(*plan, n=1, blocks=None, budget=CLAIMED, accountant="rdp"):
    scale = calibrate(plan, budget, accountant)
    events = tuple(mechanism.event(scale) for mechanism in plan)
    return Claim(plan, events, budget, accountant, n, blocks or {})


def one_shot():
    return claim(Mechanism.gaussian("counts", 0.1), Mechanism.gaussian("sums", 0.9, 4.0))


def trained(n=1000):
    return claim(DpSgdParams(expected_batch_size=n // 2, steps=8, max_grad_norm=0.5).mechanism("net", n), n=n)


def blocks(params, monkeypatch):
    monkeypatch.setattr(white_box, "BLOCK_RUNS", (150, 150))
    monkeypatch.setattr(white_box, "SIMULATED_DRAWS", 100_000)
    return claim(params.mechanism("blocks", 40), n=40, blocks={"blocks": params})


def ledger_of(impl="baselines.dpsgd_classifier:DPSGDClassifier", params=LOGREG, epsilon=4.0, **changes):
    """The JSON of a ledger as training would leave it."""
    spec = RunSpec(
        study="x", dataset="digits", method="m", impl=impl, params=params, epsilon=epsilon, delta="1/(2n)",
        allow_large_delta=False, accountant="rdp", seed=3,
    )  # fmt: skip
    meta = ImageMeta(1000, (1, 8, 8), 10)
    _, _, plan, budget = prepare_run(spec, meta)
    scale = calibrate(plan, budget, "rdp")
    facts = {
        "n": meta.n, "delta": budget.delta, "target_epsilon": epsilon, "accountant": "rdp", "shape": meta.shape,
        "coordinates": spec.coordinates().model_dump(mode="json"), "recipe": spec.model_dump(mode="json"),
        "num_classes": 10, "events": [mechanism.event(scale) for mechanism in plan],
    }  # fmt: skip
    return json.loads(json.dumps(Ledger(**facts | changes).to_json()))


# --- the door as it is ----------------------------------------------------------------------------------------


def test_one_shot_plans_are_attacked_nearly_up_to_their_claim():
    found = attack_claim(one_shot(), "test")
    assert 2.5 < found["epsilon"] < 4.0
    assert 1.3 < found["certified"] < found["epsilon"]
    assert (found["method"], found["runs"], found["canaries"]) == ("gaussian", 200, 10_000)


def test_dpsgd_is_attacked_in_one_run():
    found = attack_claim(trained(), "test")
    assert 2.0 < found["epsilon"] < 4.0
    assert 0.8 < found["certified"] < found["epsilon"]
    assert (found["method"], found["runs"], found["canaries"]) == ("gaussian", 1, 1000)
    assert found["correct"] / found["guesses"] > 0.8


def test_equal_keys_give_equal_attacks_and_other_keys_others():
    plan, coins = trained(512), np.arange(100) % 2 == 0
    first = play(plan, coins, Randomness.repeatable(0, "a"))
    assert np.array_equal(first, play(plan, coins, Randomness.repeatable(0, "a")))
    assert not np.array_equal(first, play(plan, coins, Randomness.repeatable(0, "b")))


@pytest.mark.parametrize(
    "params",
    [
        PoissonBlocks(steps=10, max_block_norm=0.5, expected_batch_size=20),
        ShardBlocks(steps=10, max_block_norm=0.5, shards=2),
    ],
)
def test_block_gradients_are_attacked_with_a_canary_a_run(params, monkeypatch):
    found = attack_claim(blocks(params, monkeypatch), "test")
    assert 0.2 < found["epsilon"] < 4.0
    assert (found["runs"], found["canaries"]) == (150, 150)


def test_a_mixed_plan_is_attacked_as_a_whole():
    """The release of each part adds to what is seen of a canary."""
    sgd = DpSgdParams(expected_batch_size=256, steps=3, max_grad_norm=0.5).mechanism("net", 512)
    mixed, coins = claim(sgd, Mechanism.gaussian("counts"), n=512), np.arange(512) % 2 == 0
    scores = play(mixed, coins, Randomness.repeatable(0))
    seen = scores[coins].mean() - scores[~coins].mean()
    z = mixed.events[1].noise_multiplier
    assert seen > 1 / z**2 + 0.1  # which the one-shot release shows alone


@pytest.mark.parametrize("moments", [False, True])
def test_both_kinds_of_one_shot_release_show_the_whole_of_mu(moments):
    """Scores of a mu-GDP release are N(-mu^2 / 2, mu^2) and N(mu^2 / 2, mu^2)."""
    plan = one_shot()
    mu = math.sqrt(sum(event.noise_multiplier**-2 for event in plan.events))
    coins = np.arange(400) % 2 == 0
    scores = np.concatenate(
        [play(plan, coins, Randomness.repeatable(run), moments) for run in range(5)]
    ).reshape(5, 400)  # fmt: skip
    within, without = scores[:, coins], scores[:, ~coins]
    assert within.mean() == pytest.approx(mu**2 / 2, abs=4 * mu / math.sqrt(1000))
    assert without.mean() == pytest.approx(-(mu**2) / 2, abs=4 * mu / math.sqrt(1000))
    assert without.std() == pytest.approx(mu, rel=0.1)


def test_the_score_is_the_log_ratio_of_the_densities():
    event, x = Event("poisson_subsampled_gaussian", "a", 0.7, 2.0, 0.2), np.linspace(-2, 3, 7)

    def density(mean):
        return np.exp(-((x - mean) ** 2) / (2 * 0.7**2))

    assert log_ratio(event, x) == pytest.approx(np.log(0.8 + 0.2 * density(1) / density(0)))
    whole = Event("gaussian", "a", 0.7, 2.0)
    assert log_ratio(whole, x) == pytest.approx(np.log(density(1) / density(0)))
    assert np.isfinite(
        log_ratio(Event("poisson_subsampled_gaussian", "a", 1e-3, 1.0, 0.2), np.array([-1.0, 2.0]))
    ).all()


def test_the_simulation_scores_as_the_door_does():
    plan = trained()
    simulated = white_box.simulate(plan.events)
    coins = np.arange(1000) % 2 == 0
    scores = play(plan, coins, Randomness.repeatable(0))
    for side in (True, False):
        expected = simulated.scores[simulated.included == side]
        assert scores[coins == side].mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / math.sqrt(500))
        assert scores[coins == side].std() == pytest.approx(expected.std(), rel=0.2)


def test_guesses_are_the_highest_scores_in_and_the_lowest_out():
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0])
    played = Played(scores, np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 1], bool))
    found = one_run_audit(played, (0.3, 0.2), 0.0, 0.95)[1]
    assert (found["guesses"], found["correct"]) == (5, 3)  # 2 of 3 in, 1 of 2 out


@pytest.mark.parametrize("bound", ["by_errors", "by_clopper_pearson", "by_one_run"])
def test_a_guess_rule_is_fixed_before_the_scores_that_it_certifies_are_seen(bound, monkeypatch):
    """Chosen on them, the best of many rules would exceed the truth too often."""
    mechanism, coins, rules = Mechanism.gaussian("sums"), np.arange(400) % 2 == 0, []
    plan = Claim((mechanism,), (mechanism.event(1.0),), CLAIMED, "rdp", 1, {})
    simulated = Played(np.random.default_rng(0).normal(coins), coins)
    monkeypatch.setattr(white_box, "simulate", lambda events: simulated)
    monkeypatch.setattr(white_box, "SHARES", (0.0, 0.1, 0.5))
    errors_of, audit = white_box._errors, white_box.one_run_audit

    def errors(scored, threshold, *trials):
        if scored is played:
            rules[-1] = threshold
        return errors_of(scored, threshold, *trials)

    monkeypatch.setattr(white_box, "_errors", errors)
    monkeypatch.setattr(white_box, "one_run_audit", lambda *a: rules.__setitem__(-1, a[1]) or audit(*a))
    scores = np.random.default_rng(1).normal(2.0 * coins)
    for played in (Played(scores, coins), Played(-scores, coins)):
        rules.append(None)
        getattr(white_box, bound)(plan, played)
    assert rules[0] is not None
    assert rules[0] == rules[1]


def test_a_bound_by_the_profile_exceeds_the_truth_one_time_in_twenty_at_most(monkeypatch):
    """Scores as the claim has them; a closed form (Balle, Barthe, Gaboardi 2018) replaces PLD, which takes long."""
    mechanism, q, repeats, coins = Mechanism("s", "poisson_subsampled_gaussian", 0.6), 0.6, 60, np.arange(600) % 2 == 0
    claimed = Claim((mechanism,), (mechanism.event(0.5),), Budget(4.0, 1e-3), "pld", 1000, {})

    @functools.cache
    def exact(event, delta):
        z = event.noise_multiplier
        return math.log1p(q * math.expm1(bounds.epsilon_of_mu(1 / z, min(delta / q, 1.0)))) if delta < q else 0.0

    truth = white_box.epsilon_spent(claimed.events, 1e-3, "pld")
    assert exact(claimed.events[0], 1e-3) == pytest.approx(truth, rel=2e-3)
    monkeypatch.setattr(white_box, "epsilon_spent", lambda events, delta, _: exact(events[0], delta))
    rng, found = np.random.default_rng(0), []
    for _ in range(repeats):
        drawn = coins & (rng.random(600) < q)
        scores = log_ratio(claimed.events[0], drawn + 0.5 * rng.standard_normal(600))
        found.append(white_box.by_errors(claimed, Played(scores, coins)))
    assert (np.array(found) > truth).sum() <= stats.binom.ppf(0.999, repeats, 0.05)
    assert np.median(found) > 0.4 * truth


# --- power: broken doors break their claims -------------------------------------------------------------------


def half_the_noise(monkeypatch, share=0.5):
    for module in (door, dpsgd, block):
        honest = module.noised
        monkeypatch.setattr(module, "noised", lambda total, std, *rest, one=honest: one(total, std * share, *rest))


def twice_the_clip(monkeypatch):
    clipped, total = dpsgd.add_clipped, door.PrivateData._clipped_total
    monkeypatch.setattr(dpsgd, "add_clipped", lambda out, gradients, norm: clipped(out, gradients, 2 * norm))
    monkeypatch.setattr(
        door.PrivateData,
        "_clipped_total",
        lambda self, name, statistic, bound, reduce, rng: total(self, name, statistic, bound * 2, reduce, rng),
    )


def no_clip(monkeypatch):
    def summed(total, gradients, _):
        total += torch.cat([g.flatten(1) for g in gradients], 1).sum(0)

    monkeypatch.setattr(dpsgd, "add_clipped", summed)


def every_record_in_every_batch(monkeypatch):
    monkeypatch.setattr(dpsgd.DpSgd, "_draw", lambda self, index: np.arange(self._n))


@pytest.mark.parametrize("fault", [half_the_noise, twice_the_clip])
def test_a_broken_one_shot_door_exceeds_its_claim(fault, monkeypatch):
    plan = one_shot()
    fault(monkeypatch)
    assert attack_claim(plan, "test")["epsilon"] > CLAIMED.epsilon


@pytest.mark.parametrize("fault", [half_the_noise, twice_the_clip, no_clip, every_record_in_every_batch])
def test_broken_dpsgd_exceeds_its_claim(fault, monkeypatch):
    plan = trained()
    fault(monkeypatch)
    assert attack_claim(plan, "test")["epsilon"] > CLAIMED.epsilon


def test_broken_block_gradients_exceed_their_claim(monkeypatch):
    """One canary a run leaves too few of them for half the noise to be seen at once."""
    plan = blocks(PoissonBlocks(steps=10, max_block_norm=0.5, expected_batch_size=20), monkeypatch)
    half_the_noise(monkeypatch, 0.25)
    assert attack_claim(plan, "test")["epsilon"] > CLAIMED.epsilon


# --- ledgers --------------------------------------------------------------------------------------------------


def test_a_ledger_is_attacked_by_its_own_recipe():
    value = ledger_of()
    found = attack(value, "ledger.json")
    assert {key: found[key] for key in ("coordinates", "recipe", "delta", "target_epsilon")} == {
        key: value[key] for key in ("coordinates", "recipe", "delta", "target_epsilon")
    }
    assert 0 < found["attack"]["epsilon"] < 4
    assert found["attack"]["exceeded"] is False
    assert len(found["provenance"]["code"]) > 5
    json.dumps(found, allow_nan=False)


def test_seeds_share_an_attack(monkeypatch):
    """It is the mechanism that is attacked, and the seed is no part of it."""
    made = []
    monkeypatch.setattr(white_box, "attack_claim", lambda *arguments: made.append(arguments) or {"epsilon": 1.0})
    value = ledger_of()
    for seed in (3, 9):
        changes = {name: value[name] | {"seed": seed} for name in ("recipe", "coordinates")}
        attack(ledger_of(**changes), "ledger.json")
    assert made[0] == made[1]


def test_which_door_a_sampled_mechanism_came_through_follows_from_the_recipe():
    sinkhorn = {"blocks": {"steps": 5, "max_block_norm": 0.5, "expected_batch_size": 10}}
    found = claim_of(ledger_of("baselines.dp_sinkhorn:DPSinkhorn", sinkhorn), "x")
    assert list(found.blocks.values()) == [PoissonBlocks(**sinkhorn["blocks"])]
    assert claim_of(ledger_of(), "x").blocks == {}


def test_a_bound_above_the_target_is_believed_after_fresh_attacks_alone(monkeypatch):
    bounds = iter([5.0, 4.5, 4.2])
    monkeypatch.setattr(white_box, "attack_claim", lambda *_: {"epsilon": next(bounds)})
    assert attack(ledger_of(), "x")["attack"] == {"epsilon": 4.2, "exceeded": True}
    bounds = iter([5.0, 3.0, 9.9])
    monkeypatch.setattr(white_box, "attack_claim", lambda *_: {"epsilon": next(bounds)})
    assert attack(ledger_of(), "x")["attack"] == {"epsilon": 3.0, "exceeded": False}


def test_fresh_attacks_are_of_other_randomness(monkeypatch):
    names = []
    monkeypatch.setattr(white_box, "attack_claim", lambda _, name: names.append(name) or {"epsilon": 9.0})
    attack(ledger_of(), "x")
    assert len(set(names)) == len(names) == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: ledger_of(epsilon=math.inf), r"run/ledger\.json.*epsilon inf"),
        (lambda: ledger_of(events=[]), r"run/ledger\.json.*no event"),
        (lambda: ledger_of() | {"n": 999}, r"run/ledger\.json.*changed after"),
        (lambda: ledger_of() | {"version": 1}, r"run/ledger\.json.*version"),
        (lambda: ledger_of(recipe={}), r"run/ledger\.json.*recipe"),
        (lambda: ledger_of(recipe=ledger_of()["recipe"] | {"impl": "no.such:Method"}), r"no\.such"),
    ],
)
def test_what_cannot_be_attacked_is_refused(value, message, monkeypatch):
    monkeypatch.setattr(white_box, "attack_claim", lambda *_: pytest.fail("attacked"))
    with pytest.raises(UserError, match=message):
        attack(value(), "run/ledger.json")


def test_events_other_than_the_recipes_are_refused():
    value = ledger_of()
    event = Event(**value["events"][0] | {"noise_multiplier": 9.0})
    with pytest.raises(UserError, match=r"x\.json.*noise_multiplier = 9\.0"):
        attack(ledger_of(events=[event]), "x.json")
    assert sha256_of(b"") != value["seal"]  # it is sealed anew, so that the seal is not what is noticed
