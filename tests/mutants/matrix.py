"""The bugs that are planted, and the check that must notice each: data of `run.py` and of the table in docs/privacy.md.

Each is a slip that an author could make. An old text must occur exactly once in its file: the matrix follows the code.
"""

from typing import Literal, NamedTuple


class Mutant(NamedTuple):
    """One planted bug."""

    name: str  # what is wrong, as in the table
    file: str
    edits: dict[str, str]  # old text -> new text
    kind: Literal["unit test", "swap test", "contract test", "audit", "attack"]
    check: str  # of pytest: a node that must fail
    why: str  # it matters


RELEASES, DPSGD, BLOCKS, NOISES = (
    f"tests/privacy/test_{name}_claims.py::test_" for name in ("release", "dpsgd", "block", "noise")
)
CONTRACT = "tests/contract/test_methods.py::test_"
SWAP_CONTRACT = f"{CONTRACT}a_private_loss_passes_the_whole_swap_test"
SILENCED = f"{CONTRACT}data_reach_the_model_only_through_mechanisms"
UNIT = "tests/unit/test_"

MUTANTS = [
    # --- one-shot releases ---------------------------------------------------------------------------------------
    Mutant(
        "the releases of a plan share one stream of noise",
        "dpdm/privacy/door.py",
        {"            rng = self._rng.scoped(name)\n": "            rng = self._rng\n"},
        "unit test",
        f"{NOISES}no_stream_is_drawn_from_twice",
        "the difference of two releases has no noise",
    ),
    Mutant(
        "a statistic is clipped after it was summed",
        "dpdm/privacy/door.py",
        {
            "total + reduce(v * clip_factor(norms, l2_bound).view(-1, *[1] * (v.ndim - 1))).cpu()": (
                "total + reduce(v).cpu()"
            ),
            "        return total\n": "        return total * clip_factor(total.norm(), l2_bound * count)\n",
        },
        "unit test",
        f"{RELEASES}one_record_moves_a_release_by_at_most_its_declared_sensitivity",
        "one record moves the sum by up to n clip norms",
    ),
    Mutant(
        "a statistic is shown a whole chunk",
        "dpdm/privacy/door.py",
        {
            'torch.func.vmap(self._of_one, randomness="different")(images, labels)': (
                "self._statistic(images, labels).double()"
            )
        },
        "unit test",
        f"{RELEASES}a_statistic_cannot_see_another_record",
        "a statistic that sorts or centres has a larger sensitivity",
    ),
    Mutant(
        "a statistic may remember records",
        "dpdm/privacy/door.py",
        {"and torch.equal(first.nan_to_num(), again.nan_to_num())": ""},
        "unit test",
        f"{RELEASES}a_statistic_that_remembers_is_refused_before_it_sees_a_record",
        "a record moves what is said of later ones",
    ),
    Mutant(
        "a statistic draws once for all records",
        "dpdm/privacy/door.py",
        {'randomness="different")(images': 'randomness="same")(images'},
        "unit test",
        f"{RELEASES}what_a_statistic_draws_is_drawn_per_record_and_repeats",
        "what a record adds depends on the draws of others",
    ),
    Mutant(
        "sums in the statistic's own dtype",
        "dpdm/privacy/door.py",
        {"return v[0].detach().double().clone()": "return v[0].detach().clone()"},
        "unit test",
        f"{RELEASES}rounding_does_not_widen_the_bound",
        "rounding moves a bfloat16 sum by three clip norms",
    ),
    Mutant(
        "a release's noise forgets the sensitivity",
        "dpdm/privacy/door.py",
        {"event.noise_multiplier * event.sensitivity, rng": "event.noise_multiplier, rng"},
        "attack",
        f"{UNIT}white_box.py::test_one_shot_plans_are_attacked_nearly_up_to_their_claim",
        "sums of bound 4 get a quarter of their noise",
    ),
    Mutant(
        "a release's noise is 2 % low",
        "dpdm/privacy/door.py",
        {"noised(total, event.noise_multiplier": "noised(total, 0.98 * event.noise_multiplier"},
        "unit test",
        f"{RELEASES}observed_noise_is_the_declared_noise",
        "epsilon is understated by more than 2 %",
    ),
    Mutant(
        "a release's event is written after it",
        "dpdm/privacy/door.py",
        {
            "        self.ledger.append(event)  # before anything is released\n": "",
            "l2_bound, reduce, rng)\n            released": (
                "l2_bound, reduce, rng)\n            self.ledger.append(event)\n            released"
            ),
        },
        "unit test",
        f"{RELEASES}the_event_is_written_before_the_release",
        "a run that dies in between released what its ledger does not know",
    ),
    Mutant(
        "a checkpoint's release is taken whatever noise it has",
        "dpdm/privacy/door.py",
        {'        if saved["event"] != asdict(event):\n': "        if False:\n"},
        "unit test",
        f"{UNIT}gauss.py::test_a_killed_run_neither_repeats_the_releases_nor_pays_twice",
        "the ledger would say more noise than was added",
    ),
    Mutant(
        "a mechanism is served twice",
        "dpdm/privacy/door.py",
        {"        self._served.add(name)\n": ""},
        "unit test",
        f"{RELEASES}only_planned_mechanisms_and_each_once",
        "twice the releases for one event",
    ),
    Mutant(
        "a larger bound than planned is served",
        "dpdm/privacy/door.py",
        {"if sensitivity != mechanism.sensitivity": "if sensitivity < mechanism.sensitivity"},
        "unit test",
        f"{RELEASES}dpsgd_with_another_recipe_than_planned_is_refused",
        "the noise is that of the planned bound",
    ),
    Mutant(
        "a larger batch than planned is served",
        "dpdm/privacy/door.py",
        {
            "(asked.sample_rate, asked.steps) != (mechanism.sample_rate, mechanism.steps)": (
                "asked.steps != mechanism.steps"
            )
        },
        "unit test",
        f"{RELEASES}dpsgd_with_another_recipe_than_planned_is_refused",
        "batch and accounted rate differ",
    ),
    Mutant(
        "a door can be copied",
        "dpdm/privacy/door.py",
        {"class PrivateData(NoCopy)": "class PrivateData"},
        "unit test",
        f"{RELEASES}a_door_cannot_be_copied",
        "the copy releases again, with the same noise and no event",
    ),
    # --- randomness ----------------------------------------------------------------------------------------------
    Mutant(
        "streams ignore their mechanism",
        "dpdm/privacy/noise.py",
        {"json.dumps([*self._scope, name, list(index)])": "json.dumps([name, list(index)])"},
        "unit test",
        f"{UNIT}noise.py::test_equal_keys_give_equal_streams_and_every_use_has_its_own",
        "two mechanisms share their noise",
    ),
    Mutant(
        "noise is the same at every step",
        "dpdm/privacy/noise.py",
        {"rng.normal(name, *index, shape=total.shape)": "rng.normal(name, shape=total.shape)"},
        "unit test",
        f"{NOISES}no_stream_is_drawn_from_twice",
        "the difference of two steps has no noise",
    ),
    Mutant(
        "the grid of a release depends on the data",
        "dpdm/privacy/noise.py",
        {"math.ceil(math.log2(std))": "math.ceil(math.log2(std + float(total.abs().max())))"},
        "unit test",
        f"{UNIT}noise.py::test_the_grid_does_not_depend_on_the_total",
        "the lowest bits of a release tell of its size before noise",
    ),
    Mutant(
        "a release is not rounded",
        "dpdm/privacy/noise.py",
        {".mul_(1 / grid).round_().mul_(grid)": ""},
        "unit test",
        f"{UNIT}noise.py::test_a_release_is_the_sum_plus_noise_on_a_grid_of_the_noise",
        "gaps of floating-point noise tell what it was added to",
    ),
    Mutant(
        "the seed of the noise is cut to 16 bits",
        "dpdm/privacy/noise.py",
        {"json.dumps([seed, *facts])": "json.dumps([seed % 2**16, *facts])"},
        "unit test",
        f"{UNIT}noise.py::test_a_repeatable_key_follows_from_every_fact",
        "all keys can be tried",
    ),
    Mutant(
        "the draws of losses are seeded by 16 bits",
        "dpdm/privacy/noise.py",
        {"self._subkey(name, index)[:4]": "self._subkey(name, index)[:2]"},
        "unit test",
        f"{UNIT}noise.py::test_the_draws_of_a_loss_are_a_stream_too",
        "after a few hundred chunks two draw the same",
    ),
    Mutant(
        "torch streams are seeded by 16 bits",
        "dpdm/rng.py",
        {"(base + sum(index[-1:])) % 2**32": "(base + sum(index[-1:])) % 2**16"},
        "unit test",
        f"{UNIT}rng.py::test_no_two_steps_share_a_torch_generator",
        "steps share their draws",
    ),
    Mutant(
        "the seed of all streams is cut to 16 bits",
        "dpdm/rng.py",
        {"np.random.SeedSequence(self.seed, spawn_key": "np.random.SeedSequence(self.seed % 2**16, spawn_key"},
        "unit test",
        f"{UNIT}rng.py::test_streams_differ_by_seed_scope_name_and_index",
        "runs of different seeds share their draws",
    ),
    Mutant(
        "the key forgets recipe and images",
        "dpdm/method.py",
        {"Randomness.repeatable(spec.seed, run)": "Randomness.repeatable(spec.seed)"},
        "unit test",
        f"{UNIT}method.py::test_one_record_less_means_other_noise_for_all",
        "two runs, before and after a person withdrew, show the person",
    ),
    Mutant(
        "a run's fingerprint forgets the recipe",
        "dpdm/method.py",
        {"sha256_of(spec_json(spec).encode(), ": "sha256_of("},
        "unit test",
        f"{UNIT}method.py::test_two_runs_of_one_seed_do_not_share_their_noise",
        "runs of two methods share their noise",
    ),
    Mutant(
        "secret noise is drawn by the repeatable key",
        "dpdm/method.py",
        {'if spec.noise == "secret":': 'if spec.noise == "none":'},
        "unit test",
        f"{UNIT}checkpoint.py::test_secret_noise_follows_only_from_the_key",
        "the ledger calls secret what everyone can draw",
    ),
    Mutant(
        "the secret key is in the ledger",
        "dpdm/method.py",
        {
            "        rng = Randomness(secret_key(checkpoint, made, processes or Processes()))\n": (
                "        key = secret_key(checkpoint, made, processes or Processes())\n"
                '        ledger.provenance["key"] = key.hex()\n'
                "        rng = Randomness(key)\n"
            )
        },
        "unit test",
        f"{UNIT}checkpoint.py::test_the_command_line_destroys_the_key_when_the_run_is_done",
        "the ledger is published",
    ),
    Mutant(
        "an old model lies next to a new ledger",
        "dpdm/jobs.py",
        {'    (folder / "model.pt").unlink(missing_ok=True)': '    (folder / "model.pt").stat'},
        "unit test",
        f"{UNIT}checkpoint.py::test_a_model_that_cannot_be_written_leaves_no_older_one",
        "the audit passes for a model that was trained without noise",
    ),
    Mutant(
        "the key of a published run serves the next one",
        "dpdm/jobs.py",
        {
            "key_path(checkpoint).unlink()  # of the run": "key_path(checkpoint)  # of the run",
        },
        "unit test",
        f"{UNIT}checkpoint.py::test_a_finished_secret_run_leaves_no_key_and_its_key_serves_no_other",
        "equal noise in two releases cancels in their difference",
    ),
    Mutant(
        "the secret key outlives its run",
        "dpdm/jobs.py",
        {"kept = [] if keep_key else [key_path(checkpoint)]": "kept = []"},
        "unit test",
        f"{UNIT}checkpoint.py::test_the_command_line_destroys_the_key_when_the_run_is_done",
        "whoever finds it later can subtract the noise",
    ),
    Mutant(
        "everyone can read the secret key",
        "dpdm/privacy/key.py",
        {"0o600": "0o644"},
        "unit test",
        f"{UNIT}key.py::test_a_key_is_made_once_for_its_owner_and_found_again",
        "other users of the machine can subtract the noise",
    ),
    Mutant(
        "a key that the group can read is accepted",
        "dpdm/privacy/key.py",
        {"if mode & 0o077": "if mode & 0o007"},
        "unit test",
        f"{UNIT}key.py::test_a_key_that_others_can_reach_is_refused",
        "the group can subtract the noise",
    ),
    Mutant(
        "the key of another run is accepted",
        "dpdm/privacy/key.py",
        {'if saved.get("run") != run': 'if "run" not in saved'},
        "unit test",
        f"{UNIT}key.py::test_the_key_of_another_run_is_refused",
        "one noise on two data sets cancels",
    ),
    # --- DP-SGD --------------------------------------------------------------------------------------------------
    Mutant(
        "two mechanisms of a plan share their streams of steps",
        "dpdm/privacy/door.py",
        {"rng, meta = self._rng.scoped(asked.name), self.meta": "rng, meta = self._rng, self.meta"},
        "unit test",
        f"{NOISES}no_stream_is_drawn_from_twice",
        "equal batches and equal noise in both",
    ),
    Mutant(
        "DP-SGD clips every parameter on its own",
        "dpdm/privacy/dpsgd.py",
        {
            "        if g.is_cuda:  # few": (
                "        weights = bound / _squared_norms(g).sqrt().clamp(min=bound)\n        if g.is_cuda:  # few"
            )
        },
        "unit test",
        f"{DPSGD}one_record_moves_the_sum_by_at_most_the_clip_norm",
        "the sensitivity is the root of the number of tensors times as large",
    ),
    Mutant(
        "DP-SGD clips at twice the bound",
        "dpdm/privacy/dpsgd.py",
        {"bound = max_grad_norm * (1 - ROUNDING)": "bound = max_grad_norm * 2"},
        "attack",
        f"{UNIT}white_box.py::test_dpsgd_is_attacked_in_one_run",
        "half the noise that a record's move needs",
    ),
    Mutant(
        "DP-SGD's clipping does not pay for rounding",
        "dpdm/privacy/dpsgd.py",
        {"bound = max_grad_norm * (1 - ROUNDING)": "bound = max_grad_norm"},
        "unit test",
        f"{DPSGD}rounding_does_not_widen_the_clip_norm",
        "a float32 sum moves by more than the clip norm",
    ),
    Mutant(
        "DP-SGD's noise is 2 % low",
        "dpdm/privacy/dpsgd.py",
        {"noised(total, self.declared.noise_multiplier": "noised(total, 0.98 * self.declared.noise_multiplier"},
        "unit test",
        f"{DPSGD}observed_noise_is_the_declared_noise",
        "epsilon is understated by more than 2 %",
    ),
    Mutant(
        "DP-SGD's noise is half as large",
        "dpdm/privacy/dpsgd.py",
        {"noised(total, self.declared.noise_multiplier": "noised(total, 0.5 * self.declared.noise_multiplier"},
        "attack",
        f"{UNIT}white_box.py::test_dpsgd_is_attacked_in_one_run",
        "epsilon is more than twice the claim",
    ),
    Mutant(
        "DP-SGD's noise forgets the clip norm",
        "dpdm/privacy/dpsgd.py",
        {"noise_multiplier * self.declared.sensitivity, self._rng": "noise_multiplier, self._rng"},
        "unit test",
        f"{DPSGD}observed_noise_is_the_declared_noise",
        "a clip norm above 1 gets too little noise",
    ),
    Mutant(
        "DP-SGD draws its noise from the stream of its batches",
        "dpdm/privacy/dpsgd.py",
        {'self._rng, "noise", index)': 'self._rng, "poisson", index)'},
        "unit test",
        f"{NOISES}no_stream_is_drawn_from_twice",
        "the noise shows who was drawn",
    ),
    Mutant(
        "DP-SGD has the noise of its first step in every step",
        "dpdm/privacy/dpsgd.py",
        {'self._rng, "noise", index)': 'self._rng, "noise", 0)'},
        "unit test",
        f"{NOISES}no_stream_is_drawn_from_twice",
        "the difference of two steps has no noise",
    ),
    Mutant(
        "the mean is over the drawn batch",
        "dpdm/privacy/dpsgd.py",
        {"rows = self.params.expected_batch_size": "rows = max(1, len(batch))"},
        "unit test",
        f"{DPSGD}the_mean_is_over_the_expected_batch_never_the_drawn_one",
        "the number drawn is secret, and the noise shrinks with it",
    ),
    Mutant(
        "an empty batch gets no noise",
        "dpdm/privacy/dpsgd.py",
        {
            "        batch = self._draw(index)\n": (
                "        batch = self._draw(index)\n        if not len(batch):\n            return\n"
            )
        },
        "unit test",
        f"{DPSGD}empty_batches_are_noised_and_counted",
        "an unmoved network says that nobody was drawn",
    ),
    Mutant(
        "the norm before noise is logged",
        "dpdm/privacy/dpsgd.py",
        {
            "        total = noised(total": "        before = total.norm()\n        total = noised(total",
            "float(total.norm())": "float(before) / rows",
        },
        "unit test",
        f"{DPSGD}the_released_norm_is_of_the_noised_gradient",
        "a release outside the ledger",
    ),
    Mutant(
        "as many public rows are counted as records were drawn",
        "dpdm/privacy/dpsgd.py",
        {"rows += len(public.images)": "rows += len(batch)"},
        "unit test",
        f"{DPSGD}public_rows_are_clipped_one_by_one_and_join_the_mean",
        "the number drawn is secret",
    ),
    Mutant(
        "the number of public rows may change",
        "dpdm/privacy/dpsgd.py",
        {"if self._public_count not in (None, len(public.images))": "if self._public_count == -1"},
        "unit test",
        f"{DPSGD}the_number_of_public_rows_must_not_change",
        "as many fakes as records drawn tell their number",
    ),
    Mutant(
        "a private step is counted after it",
        "dpdm/privacy/loop.py",
        {
            "            self._loop._count_step()  # before anything is released; an empty batch counts as well\n": "",
            "                return self._loop._release(*asked, self.index)\n": (
                "                released = self._loop._release(*asked, self.index)\n"
                "                self._loop._count_step()\n                return released\n"
            ),
        },
        "unit test",
        f"{DPSGD}a_step_is_counted_before_its_records_are_seen",
        "a step that dies half done is in the weights and not in the ledger",
    ),
    Mutant(
        "two steps share a Poisson batch",
        "dpdm/privacy/loop.py",
        {'"poisson", index, count': '"poisson", index // 2, count'},
        "unit test",
        f"{NOISES}no_stream_is_drawn_from_twice",
        "a record drawn once is in two steps: amplification does not hold",
    ),
    Mutant(
        "batches are drawn with replacement",
        "dpdm/privacy/loop.py",
        {
            "np.flatnonzero(u < self.declared.sample_rate)": (
                "(len(u) * u[: round(len(u) * self.declared.sample_rate)]).astype(int)"
            )
        },
        "unit test",
        f"{DPSGD}poisson_inclusion",
        "a record may count twice, and one less changes others' chances",
    ),
    Mutant(
        "batches have a fixed size",
        "dpdm/privacy/loop.py",
        {
            "np.flatnonzero(u < self.declared.sample_rate)": (
                "np.argsort(u)[: round(len(u) * self.declared.sample_rate)]"
            )
        },
        "unit test",
        f"{DPSGD}poisson_inclusion",
        "accounted for Poisson sampling",
    ),
    Mutant(
        "every record is in every batch",
        "dpdm/privacy/loop.py",
        {"u < self.declared.sample_rate": "u < 1"},
        "attack",
        f"{UNIT}white_box.py::test_dpsgd_is_attacked_in_one_run",
        "no amplification by sampling",
    ),
    Mutant(
        "steps are not counted",
        "dpdm/privacy/loop.py",
        {"        self._ledger.count_step(self._event)\n": "        pass\n"},
        "unit test",
        f"{DPSGD}empty_batches_are_noised_and_counted",
        "the audit sees no steps",
    ),
    Mutant(
        "a step can be taken twice",
        "dpdm/privacy/loop.py",
        {"        if self.done:\n": "        if self.done is None:\n"},
        "unit test",
        f"{DPSGD}stopping_early_spends_less_and_more_steps_are_impossible",
        "the same batch and noise for another loss",
    ),
    Mutant(
        "a step kept from a closed loop goes on",
        "dpdm/privacy/loop.py",
        {"        if self._loop.closed:\n": "        if self._loop.closed is None:\n"},
        "unit test",
        f"{DPSGD}a_step_kept_from_a_closed_loop_releases_nothing",
        "more steps than planned",
    ),
    Mutant(
        "a second loop starts from the first step",
        "dpdm/privacy/loop.py",
        {"        if self._next is None:\n": "        if True:\n"},
        "unit test",
        f"{DPSGD}a_second_loop_goes_on_and_never_repeats_a_step",
        "the same batches and noise for other weights",
    ),
    Mutant(
        "a resumed run forgets the steps before",
        "dpdm/privacy/loop.py",
        {"        self._ledger.events[self._event] = event\n": ""},
        "unit test",
        f"{UNIT}checkpoint.py::test_the_ledger_counts_every_step_once",
        "the ledger has fewer steps than were released",
    ),
    Mutant(
        "a resumed run repeats a step on the weights after it",
        "dpdm/privacy/loop.py",
        {'        return saved["next"]\n': '        return max(0, saved["next"] - 1)\n'},
        "unit test",
        f"{UNIT}checkpoint.py::test_the_ledger_counts_every_step_once",
        "one noise for two gradients",
    ),
    Mutant(
        "a checkpoint of cheaper steps is accepted",
        "dpdm/privacy/loop.py",
        {"if replace(event, steps=0) != self._ledger.events[self._event]": "if event.name != self.name"},
        "unit test",
        f"{UNIT}checkpoint.py::test_a_checkpoint_with_another_event_is_refused",
        "the steps before were noised less than the ledger says",
    ),
    Mutant(
        "a checkpoint of another run is accepted",
        "dpdm/checkpoint.py",
        {'if saved.get("fingerprint") != self.fingerprint': 'if "fingerprint" not in saved'},
        "unit test",
        f"{UNIT}checkpoint.py::test_a_checkpoint_of_another_run_is_not_used[recipe]",
        "weights of other data, which this ledger does not know",
    ),
    Mutant(
        "a run's fingerprint forgets the images",
        "dpdm/method.py",
        {"spec_json(spec).encode(), images.digest().encode())": "spec_json(spec).encode())"},
        "unit test",
        f"{UNIT}checkpoint.py::test_a_checkpoint_of_another_run_is_not_used[data]",
        "a run on other data goes on from its checkpoint, with its noise",
    ),
    # --- per-example gradients -----------------------------------------------------------------------------------
    Mutant(
        "two forward passes are merged into one example",
        "dpdm/privacy/per_example.py",
        {"if self._forwards != [rows] or losses.shape": "if losses.shape"},
        "unit test",
        f"{DPSGD}two_forward_passes_in_one_step_are_refused",
        "gradients of the second pass overwrite or join the first's",
    ),
    Mutant(
        "frozen batch norm passes",
        "dpdm/privacy/per_example.py",
        {
            "isinstance(layer, _BatchNorm) and (": (
                "isinstance(layer, _BatchNorm) and any(p.requires_grad for p in _own(layer)) and ("
            )
        },
        "unit test",
        f"{UNIT}zoo.py::test_refused_in_one_sentence_that_names_the_layer[BatchNorm2d: frozen]",
        "2 to 33 times the sensitivity",
    ),
    Mutant(
        "a forward pass may change buffers",
        "dpdm/privacy/per_example.py",
        {"    if changed:\n": "    if changed is None:\n"},
        "unit test",
        f"{UNIT}per_example.py::test_buffers_that_a_forward_pass_changes_are_refused_by_name_and_put_back",
        "a running mean of activations is a release outside the ledger",
    ),
    Mutant(
        "padding modes are taken for zeros",
        "dpdm/privacy/per_example.py",
        {'elif isinstance(padding, str) or layer.padding_mode != "zeros"': "elif isinstance(padding, str)"},
        "unit test",
        f"{UNIT}zoo.py::test_the_fast_functions_are_exact[Conv1d: circular]",
        "gradients of another network",
    ),
    Mutant(
        "the gradient of a weight used outside its layer is dropped",
        "dpdm/privacy/per_example.py",
        {
            "            self._refuse_outside(outside)\n            found": "            found",
        },
        "unit test",
        f"{UNIT}per_example.py::test_a_weight_used_outside_its_layer_is_refused_by_name",
        "the step follows another loss than was written",
    ),
    Mutant(
        "K rows are summed, not averaged",
        "dpdm/privacy/per_example.py",
        {"_at_least_float32(losses).sum() / self.rows_per_example": "_at_least_float32(losses).sum()"},
        "unit test",
        f"{DPSGD}clipped_sum_equals_brute_force",
        "K times the gradient is clipped",
    ),
    # --- the swap test -------------------------------------------------------------------------------------------
    Mutant(
        "a loss may change modules outside the one in training",
        "dpdm/privacy/traces.py",
        {"if before is not None and (changes or written)": "if before is not None and written"},
        "unit test",
        f"{UNIT}isolation.py::test_a_module_outside_that_a_loss_changes_is_refused",
        "a running mean of the private images is a release outside the ledger",
    ),
    Mutant(
        "a callback may write a file",
        "dpdm/privacy/traces.py",
        {"if before is not None and (changes or written)": "if before is not None and changes"},
        "unit test",
        f"{UNIT}traces.py::test_what_is_written_is_found",
        "private images in a file that no ledger knows",
    ),
    Mutant(
        "gradients that a callback leaves are not looked at",
        "dpdm/privacy/traces.py",
        {'yield from [(".grad", value.grad)] if value.is_leaf or value.retains_grad else []': "yield from ()"},
        "unit test",
        f"{BLOCKS}a_gradient_that_remembers_is_refused_before_a_record_is_drawn",
        "a generator keeps its raw private gradient",
    ),
    Mutant(
        "the swap test does not look at the rows' places",
        "dpdm/privacy/isolation.py",
        {"                trials.in_every_place(size)\n": ""},
        "unit test",
        f"{UNIT}isolation.py::test_a_loss_that_treats_rows_by_their_place_is_refused",
        "a record that leaves moves all others: epsilon 14 instead of 1",
    ),
    Mutant(
        "the swap test shows numbers only",
        "dpdm/privacy/isolation.py",
        {"torch.full_like(images, strange)": "images.clone()"},
        "unit test",
        f"{UNIT}isolation.py::test_a_loss_that_mixes_records_is_refused",
        "a threshold that random images never reach hides what mixes them",
    ),
    Mutant(
        "a method goes on after a mechanism failed",
        "dpdm/privacy/ledger.py",
        {"        if self.failure:\n": "        if False:\n"},
        "unit test",
        f"{UNIT}method.py::test_a_method_cannot_go_on_after_a_mechanism_failed",
        "whether it fails can show that one record is there",
    ),
    Mutant(
        "a finished run with secret noise is trained again in another folder",
        "dpdm/jobs.py",
        {'if spec.noise == "secret" and elsewhere and': "if False and elsewhere and"},
        "unit test",
        f"{UNIT}cli.py::test_a_finished_run_with_secret_noise_is_not_released_in_another_folder",
        "a second release of the same images, in no ledger of the study",
    ),
    Mutant(
        "only an Exception counts as a failure",
        "dpdm/privacy/ledger.py",
        {"except BaseException as error:": "except Exception as error:"},
        "unit test",
        f"{UNIT}method.py::test_a_method_cannot_go_on_after_a_mechanism_failed",
        "a loss that ends the training early shows when the private loss was low",
    ),
    Mutant(
        "a run may leave out a part of its plan",
        "dpdm/method.py",
        {"if done.get(name, 0) < steps": "if False"},
        "unit test",
        f"{UNIT}method.py::test_a_run_that_leaves_out_a_part_of_its_plan_is_refused",
        "a model rests on a release of another run, and its ledger is empty",
    ),
    Mutant(
        "a key serves the code before an edit of a method's helper",
        "dpdm/method.py",
        {"for found in _imports(name) if not _is_library(found)": "for found in ()"},
        "unit test",
        f"{UNIT}method.py::test_the_digest_of_a_methods_code_covers_its_module_and_what_it_shares",
        "two releases with equal noise give away the difference of their sums",
    ),
    Mutant(
        "a block's gradient gets the fakes themselves",
        "dpdm/privacy/block.py",
        {"block = gradient(fakes.clone(), *self": "block = gradient(fakes, *self"},
        "unit test",
        f"{BLOCKS}a_gradient_that_edits_the_fakes_leaves_nothing_in_them",
        "private images stay in a tensor of the method",
    ),
    Mutant(
        "a method may load the private data set",
        "dpdm/sources/base.py",
        {"if _ONLY is not None and self.source not in _ONLY[0]": "if False"},
        "unit test",
        f"{UNIT}method.py::test_a_method_cannot_load_images_itself",
        "nothing that it learns from them is in the ledger",
    ),
    Mutant(
        "a statistic's own buffer is not copied",
        "dpdm/privacy/door.py",
        {"v[0].detach().double().clone()": "v[0].detach().double()"},
        "unit test",
        f"{RELEASES}a_buffer_that_a_statistic_returns_is_copied",
        "the last record of a chunk counts 512 times",
    ),
    Mutant(
        "a shard's preparation is not tried again",
        "dpdm/privacy/block.py",
        {"self._preparations < 2": "not self._rehearsed"},
        "unit test",
        f"{BLOCKS}a_preparation_that_looks_at_the_moving_generator_is_refused",
        "a state shows which shards were drawn before",
    ),
    Mutant(
        "the swap test passes everything",
        "dpdm/privacy/isolation.py",
        {"\nTOLERANCE = 1e-4": "\nTOLERANCE = 1e4", "SIZE_TOLERANCE = 0.02": "SIZE_TOLERANCE = 1e4"},
        "unit test",
        f"{UNIT}isolation.py::test_a_loss_that_mixes_records_is_refused",
        "mixing losses train",
    ),
    Mutant(
        "the swap test is not run for a new loss",
        "dpdm/privacy/isolation.py",
        {"key = _identity(row_losses), _signature(module)": "key = _signature(module)"},
        "unit test",
        f"{UNIT}isolation.py::test_it_runs_in_full_when_the_loss_or_the_module_changes[code]",
        "a loss that changes later may mix",
    ),
    Mutant(
        "the swap test leaves the parameters where they are",
        "dpdm/privacy/isolation.py",
        {"            p.data.add_(noise *": "            noise.add_(noise *"},
        "unit test",
        f"{UNIT}isolation.py::test_what_zero_layers_hide_is_found",
        "layers that start at zero hide what comes before them",
    ),
    Mutant(
        "the swap test tries only small batches",
        "dpdm/privacy/isolation.py",
        {"SIZES = (3, 8, 32)": "SIZES = (3, 8)", "*([max_size] if max_size > 1 else [])": "*[]"},
        "unit test",
        f"{UNIT}isolation.py::test_a_loss_that_mixes_records_is_refused",
        "some losses mix in large batches only",
    ),
    Mutant(
        "the swap test keeps the labels",
        "dpdm/privacy/isolation.py",
        {"< differing * len(images)": "< 0 * len(images)"},
        "unit test",
        f"{UNIT}isolation.py::test_a_loss_that_mixes_records_is_refused",
        "class weights pass",
    ),
    Mutant(
        "the swap test runs once",
        "dpdm/privacy/isolation.py",
        {"if known and not is_due(step)": "if known"},
        "unit test",
        f"{UNIT}isolation.py::test_mixup_after_a_warm_up_is_refused",
        "a schedule in the loss mixes records later",
    ),
    Mutant(
        "the swap test shows no record by itself",
        "dpdm/privacy/isolation.py",
        {"trials.alone(step, ": "(lambda *_: None)(step, "},
        "unit test",
        f"{UNIT}isolation.py::test_a_loss_that_mixes_records_is_refused",
        "a mean over the batch has the size of the secret batch in it",
    ),
    Mutant(
        "no step runs the swap test",
        "dpdm/privacy/dpsgd.py",
        {"self._swap_test.run(row_losses": "(lambda *_, **__: None)(row_losses"},
        "unit test",
        f"{UNIT}isolation.py::test_the_door_runs_it_before_anything_is_released_or_counted",
        "mixing losses train",
    ),
    Mutant(
        "DPDM repeats images example-major",
        "dpdm/diffusion/loss.py",
        {"images.repeat(noise_multiplicity, 1, 1, 1)": "images.repeat_interleave(noise_multiplicity, 0)"},
        "swap test",
        f"{SWAP_CONTRACT}[digits-dpdm]",
        "K records meet in one example: 3.4 times the sensitivity at K = 4",
    ),
    Mutant(
        "DPDM repeats labels example-major",
        "dpdm/diffusion/loss.py",
        {"null_label).repeat(noise_multiplicity)": "null_label).repeat_interleave(noise_multiplicity)"},
        "swap test",
        f"{SWAP_CONTRACT}[digits-dpdm]",
        "labels of K records meet in one example",
    ),
    Mutant(
        "DPDM's loss is weighted by its batch",
        "dpdm/diffusion/loss.py",
        {"error.square().mean(dim=(1, 2, 3))": "error.square().mean(dim=(1, 2, 3)) / error.detach().square().mean()"},
        "swap test",
        f"{SWAP_CONTRACT}[digits-dpdm]",
        "every record's weight depends on the others",
    ),
    Mutant(
        "a classifier's inputs are centered by their batch",
        "baselines/dpsgd_classifier.py",
        {"(to_unit(images) - params.input_mean)": "(to_unit(images) - images.mean(0) - params.input_mean)"},
        "swap test",
        f"{SWAP_CONTRACT}[digits-dpsgd_logreg]",
        "records meet in the mean",
    ),
    Mutant(
        "a classifier weighs classes by its batch",
        "baselines/dpsgd_classifier.py",
        {
            'labels, reduction="none")': (
                'labels, torch.bincount(labels, minlength=10).clamp(min=1).reciprocal(), reduction="none")'
            )
        },
        "swap test",
        f"{SWAP_CONTRACT}[digits-dpsgd_logreg]",
        "a label moves the weights of all others",
    ),
    Mutant(
        "a discriminator sees the spread of its batch",
        "baselines/_gan.py",
        {"pixels = to_unit(images.flatten(1))\n": "pixels = to_unit(images.flatten(1)) * images.std()\n"},
        "swap test",
        f"{SWAP_CONTRACT}[laptop_gans-dpcgan]",
        "a minibatch feature: records meet",
    ),
    Mutant(
        "DPDM's network has batch norm",
        "dpdm/diffusion/network.py",
        {"return nn.GroupNorm(groups, channels, eps=1e-6)": "return nn.BatchNorm2d(channels, affine=groups > 0)"},
        "swap test",
        f"{SWAP_CONTRACT}[digits-dpdm]",
        "2 to 33 times the sensitivity",
    ),
    # --- block gradients -----------------------------------------------------------------------------------------
    Mutant(
        "a block is clipped image by image",
        "dpdm/privacy/block.py",
        {
            "norm = torch.linalg.vector_norm(block)": "norm = block.flatten(1).norm(dim=1).view(-1, 1, 1, 1)",
            "not torch.isfinite(norm):": "not torch.isfinite(norm).all():",
        },
        "unit test",
        f"{BLOCKS}one_record_moves_a_block_by_at_most_the_sensitivity",
        "the sensitivity is the root of the number of images times as large",
    ),
    Mutant(
        "a block's sensitivity is one clip norm",
        "dpdm/privacy/block.py",
        {"self.steps, sensitivity=2 * self.max_block_norm)\n": "self.steps, sensitivity=self.max_block_norm)\n"},
        "unit test",
        f"{BLOCKS}one_record_moves_a_block_by_at_most_the_sensitivity",
        "a record can turn a block into its opposite",
    ),
    Mutant(
        "a shard block's sensitivity is one clip norm",
        "dpdm/privacy/block.py",
        {"self.steps, sensitivity=2 * self.max_block_norm\n": "self.steps, sensitivity=self.max_block_norm\n"},
        "unit test",
        f"{BLOCKS}one_record_moves_a_block_by_at_most_the_sensitivity",
        "a record can turn a block into its opposite",
    ),
    Mutant(
        "a block's noise is 2 % low",
        "dpdm/privacy/block.py",
        {"std = self.declared.noise_multiplier *": "std = 0.98 * self.declared.noise_multiplier *"},
        "unit test",
        f"{BLOCKS}the_noise_has_the_declared_standard_deviation",
        "epsilon is understated by more than 2 %",
    ),
    Mutant(
        "a block's norm before noise is logged",
        "dpdm/privacy/block.py",
        {"float(released.norm())": "float(block.norm())"},
        "unit test",
        f"{BLOCKS}the_released_norm_is_of_the_noised_block",
        "a release outside the ledger",
    ),
    Mutant(
        "a block's gradient may remember records",
        "dpdm/privacy/block.py",
        {"if not torch.equal(first.nan_to_num(), again.nan_to_num())": "if first is again"},
        "unit test",
        f"{BLOCKS}a_gradient_that_remembers_is_refused_before_a_record_is_drawn",
        "later steps depend on who was drawn before",
    ),
    Mutant(
        "shards are drawn in turn",
        "dpdm/privacy/block.py",
        {'int(self._rng.uniform("shard", index, count=1)[0] * self.params.shards)': "index % self.params.shards"},
        "unit test",
        f"{BLOCKS}shards_are_drawn_uniformly",
        "no amplification: who knows a record's shard knows when it was drawn",
    ),
    Mutant(
        "a shard's critic remembers its visits",
        "dpdm/privacy/block.py",
        {"copy.deepcopy(self._prepared.get(shard))": "self._prepared.get(shard)"},
        "unit test",
        f"{BLOCKS}a_step_leaves_no_trace_in_a_shards_state",
        "later steps depend on which shards were drawn before",
    ),
    Mutant(
        "one of many shards is planned as Poisson sampling",
        "dpdm/privacy/block.py",
        {'name, "categorical_subsampled_gaussian"': 'name, "poisson_subsampled_gaussian"'},
        "unit test",
        f"{BLOCKS}shards_are_drawn_uniformly",
        "epsilon 6.43 instead of 7.70",
    ),
    # --- accounting ----------------------------------------------------------------------------------------------
    Mutant(
        "PRV accounts for shards as for Poisson sampling",
        "dpdm/privacy/prv.py",
        {"[_CategoricalPrv if part.categorical else _PoissonPrv for": "[_PoissonPrv for"},
        "unit test",
        f"{UNIT}accounting.py::test_shards_cost_more_than_poisson_under_each_accountant",
        "epsilon 6.43 instead of 7.70",
    ),
    Mutant(
        "PLD accounts for shards as for Poisson sampling",
        "dpdm/privacy/pld.py",
        {"_categorical(part, interval) if part.categorical else _poisson": "_poisson"},
        "unit test",
        f"{UNIT}accounting.py::test_shards_cost_more_than_poisson_under_each_accountant",
        "epsilon 6.43 instead of 7.70",
    ),
    Mutant(
        "RDP accounts for shards as for Poisson sampling",
        "dpdm/privacy/rdp.py",
        {"    if step.categorical:\n": "    if step.categorical is None:\n"},
        "unit test",
        f"{UNIT}accounting.py::test_shards_cost_more_than_poisson_under_each_accountant",
        "epsilon 7.20 instead of 8.48",
    ),
    Mutant(
        "PRV gives its estimate, not its upper bound",
        "dpdm/privacy/prv.py",
        {"return by_tilt(composed, order, steps, delta) + error": "return by_tilt(composed, order, steps, delta)"},
        "unit test",
        f"{UNIT}accounting.py::test_full_batches_against_the_exact_gaussian[1-1e-09-1.0]",
        "the estimate may be below the truth",
    ),
    Mutant(
        "PRV's domain is that of the mean loss",
        "dpdm/privacy/prv.py",
        {"reach = max(largest_loss(history, delta_error / 8), *one)": "reach = largest_loss(history, 1.0) / 2"},
        "unit test",
        f"{UNIT}accounting.py::test_full_batches_against_the_exact_gaussian[1-1e-09-1.0]",
        "losses beyond the domain are wrapped or cut off",
    ),
    Mutant(
        "PLD composes one direction",
        "dpdm/privacy/pld.py",
        {"        found = max(\n": "        found = min(\n"},
        "unit test",
        f"{UNIT}accounting.py::test_one_subsampled_step_against_its_closed_form[poisson_subsampled_gaussian-0.1-1.0-1e-05]",
        "adding a record costs less than removing one",
    ),
    Mutant(
        "one-shot releases are composed by 1/z",
        "dpdm/privacy/history.py",
        {"precision += part.steps / part.noise_multiplier**2": "precision += part.steps / part.noise_multiplier"},
        "unit test",
        f"{UNIT}accounting.py::test_full_batch_steps_compose_like_one_gaussian",
        "they compose by 1/z^2",
    ),
    Mutant(
        "one-shot releases next to DP-SGD are left out",
        "dpdm/privacy/history.py",
        {"    if precision > 0:\n": "    if precision > 0 and not history:\n"},
        "unit test",
        f"{UNIT}accounting.py::test_monotone_in_steps_rate_and_noise",
        "epsilon of half the releases",
    ),
    Mutant(
        "no noise costs nothing",
        "dpdm/privacy/accounting.py",
        {"for part in history):\n        return math.inf": "for part in history):\n        return 0.0"},
        "unit test",
        f"{UNIT}accounting.py::test_nothing_released_nothing_spent_and_no_noise_no_bound",
        "the audit passes a run without noise",
    ),
    Mutant(
        "calibration returns the low end of its interval",
        "dpdm/privacy/accounting.py",
        {"low, above = middle, epsilon\n    return high": "low, above = middle, epsilon\n    return low"},
        "unit test",
        f"{UNIT}accounting.py::test_calibration_is_never_above_and_within_one_per_cent_below[gaussian-1.0-rdp]",
        "epsilon is above the target",
    ),
    Mutant(
        "calibration asks only the declared accountant",
        "dpdm/privacy/accounting.py",
        {'tuple(dict.fromkeys((accountant, "prv", "pld")))': "(accountant,)"},
        "unit test",
        f"{UNIT}accounting.py::test_calibration_meets_the_target_under_the_other_accountants_too",
        "a fault of that one is not seen",
    ),
    Mutant(
        "the rate is of one record more",
        "dpdm/privacy/accounting.py",
        {"rate = expected_batch_size / n\n": "rate = expected_batch_size / (n + 1)\n"},
        "unit test",
        f"{BLOCKS}poisson_batches_draw_every_record_at_the_declared_rate",
        "q is B / n, exactly",
    ),
    Mutant(
        "delta is 1/n",
        "dpdm/data.py",
        {"value = 1 / (2 * n) if": "value = 1 / n if"},
        "contract test",
        f"{CONTRACT}the_ledger_stays_within_the_budget[digits-class_mean-1.0]",
        "at 1/n a mechanism may publish a record",
    ),
    # --- the audit -----------------------------------------------------------------------------------------------
    Mutant(
        "the audit asks only PRV",
        "dpdm/privacy/audit.py",
        {"max(spent[name] for name in audited_under(ledger.accountant)) <=": 'spent["prv"] <='},
        "audit",
        f"{UNIT}ledger.py::test_audit_fails_when_one_accountant_alone_is_above",
        "a fault of PRV is not seen",
    ),
    Mutant(
        "the seal is not checked",
        "dpdm/privacy/ledger.py",
        {'if value.get("seal") != _seal(facts)': 'if "seal" not in value'},
        "audit",
        f"{UNIT}ledger.py::test_a_changed_event_breaks_the_seal",
        "an edited event passes",
    ),
    Mutant(
        "the audit does not compare steps with the recipe",
        "dpdm/plan.py",
        {'("mechanism", "sample_rate", "steps", "sensitivity")': '("mechanism", "sample_rate", "sensitivity")'},
        "audit",
        f"{UNIT}cli.py::test_audit_compares_the_events_with_the_recipe_however_well_sealed",
        "a resealed ledger with five steps passes",
    ),
    Mutant(
        "the audit does not compare noise with the recipe",
        "dpdm/plan.py",
        {"if not math.isclose(*noises, rel_tol=CALIBRATION_TOLERANCE)": "if min(noises) < 0"},
        "audit",
        f"{UNIT}cli.py::test_audit_compares_the_events_with_the_recipe_however_well_sealed",
        "a resealed ledger with more noise than was added passes",
    ),
    Mutant(
        "the audit does not compare the target with the recipe",
        "dpdm/plan.py",
        {'        "target_epsilon": (ledger.target_epsilon, budget.epsilon),\n': ""},
        "audit",
        f"{UNIT}cli.py::test_audit_compares_the_budget_with_the_recipe",
        "a resealed ledger with twice the target passes",
    ),
    # --- methods -------------------------------------------------------------------------------------------------
    Mutant(
        "DPDM's training curve holds its loss",
        "dpdm/diffusion/method.py",
        {
            "step.update(losses)": 'step.update(lambda x, y: setattr(dp, "loss", losses(x, y)) or dp.loss)',
            "released_grad_norm=dp.released_grad_norm": "released_grad_norm=float(dp.loss.mean())",
        },
        "contract test",
        f"{SILENCED}[digits-dpdm]",
        "an unaccounted release under an allowed name",
    ),
    Mutant(
        "a kernel method divides by counts from a closure",
        "baselines/_kernel.py",
        {
            "        found = phi(to_unit(images))\n": (
                "        seen[int(labels)] += 1\n        found = phi(to_unit(images))\n"
            ),
            "    sums = private.release_sum(EMBEDDINGS, embedding, 1.0)\n": (
                "    seen = [0] * classes\n    sums = private.release_sum(EMBEDDINGS, embedding, 1.0)\n"
                "    counts = torch.tensor(seen).clamp(min=1)\n"
            ),
        },
        "contract test",
        f"{SILENCED}[digits-pearl]",
        "the exact class counts reach the model",
    ),
    Mutant(
        "dp_gaussian projects by moments without noise",
        "baselines/dp_gaussian.py",
        {
            "lambda x, y: pixels(x), bound)\n": "lambda x, y: seen.append(pixels(x).numpy()) or pixels(x), bound)\n",
            "        sums = private.release_sum(": "        seen = []\n        sums = private.release_sum(",
            "standing_out(moment, ": "standing_out(sum(torch.tensor(v.T @ v).double() for v in seen), ",
        },
        "contract test",
        f"{SILENCED}[digits-dp_gaussian]",
        "the basis is of the private images",
    ),
    Mutant(
        "class_mean plans a bound of 1 for sums of images",
        "baselines/class_mean.py",
        {"sensitivity=params.max_image_norm": "sensitivity=1.0"},
        "contract test",
        f"{CONTRACT}the_ledger_stays_within_the_budget[digits-class_mean-1.0]",
        "too little noise for the sums",
    ),
    Mutant(
        "dp_gaussian forgets to square the bound of second moments",
        "baselines/dp_gaussian.py",
        {"rest, sensitivity=bound**2": "rest, sensitivity=bound"},
        "contract test",
        f"{CONTRACT}the_ledger_stays_within_the_budget[digits-dp_gaussian-1.0]",
        "too little noise for bounds above 1",
    ),
    Mutant(
        "a GAN's fakes take the labels of the last private batch",
        "baselines/_gan.py",
        {
            "lambda x, y: F.softplus(-dp.module(x, y)),": (
                'lambda x, y: setattr(dp, "y", y) or F.softplus(-dp.module(x, y)),'
            ),
            "    step.update(\n": ('    labels[: len(getattr(dp, "y", []))] = getattr(dp, "y", 0)\n    step.update(\n'),
        },
        "contract test",
        f"{SILENCED}[laptop_gans-dpcgan]",
        "private labels leave without noise",
    ),
    Mutant(
        "DP-Sinkhorn's generator learns from the block before noise",
        "baselines/dp_sinkhorn.py",
        {
            "noised = step.release(fakes[:size], gradient)": (
                'step.release(fakes[:size], lambda *drawn: setattr(loop, "block", gradient(*drawn)) or loop.block)\n'
                "            noised = loop.block"
            )
        },
        "contract test",
        f"{SILENCED}[laptop_gans-dp_sinkhorn]",
        "what the door noised is not what is used",
    ),
    Mutant(
        "GS-WGAN's shards warm up one generator",
        "baselines/gs_wgan.py",
        {
            "generator, critic = copy.deepcopy(self._start), copy.deepcopy(self._critic)": (
                "generator, critic = self._start, copy.deepcopy(self._critic)"
            )
        },
        "unit test",
        f"{UNIT}block_rivals.py::test_a_prepared_critic_is_a_function_only_of_its_shard",
        "a shard's critic depends on which were drawn before",
    ),
    # --- warm starts, mixtures and teachers ------------------------------------------------------------------------
    Mutant(
        "a stage takes the whole budget, not its share",
        "dpdm/warm.py",
        {"m.noise_ratio * (whole / stage.share) ** 0.5": "m.noise_ratio * whole**0.5"},
        "unit test",
        f"{UNIT}warm.py::test_a_release_of_a_stage_has_its_share_of_the_budget",
        "nothing is left to DP-SGD, or the release has too little noise",
    ),
    Mutant(
        "every stage asks for the releases again",
        "dpdm/warm.py",
        {"        if name not in self._released:\n": "        if True:\n"},
        "unit test",
        f"{UNIT}warm.py::test_the_methods_own_releases_are_made_once",
        "a release that the plan has once",
    ),
    Mutant(
        "a stage that changes the releases trains",
        "dpdm/warm.py",
        {"        if released != expected:\n": "        if False:\n"},
        "unit test",
        f"{UNIT}warm.py::test_a_stage_that_changes_releases_is_refused_without_being_named",
        "the run fails after it spent its budget",
    ),
    Mutant(
        "a stage's public data are in no ledger",
        "dpdm/warm.py",
        {"(stage.source().source,) if stage.public else": "() if stage.public else"},
        "unit test",
        f"{UNIT}warm.py::test_a_public_start_costs_no_privacy_and_is_in_the_ledger",
        "a row with public data looks like one without",
    ),
    Mutant(
        "a round of k-means adds vectors that are not clipped",
        "dpdm/mixture.py",
        {"F.pad(clipped_rows(vectors, params.max_centered_norm), (1, 0)": "F.pad(vectors, (1, 0)"},
        "unit test",
        f"{UNIT}mixture.py::test_a_record_moves_no_release_by_more_than_its_sensitivity",
        "the count of a long vector is scaled down with it",
    ),
    Mutant(
        "a mixture's mean has any length",
        "dpdm/mixture.py",
        {"clipped_rows(sums / counts[:, None], params.max_image_norm), counts": "sums / counts[:, None], counts"},
        "unit test",
        f"{UNIT}mixture.py::test_a_class_without_images_has_a_mean_no_longer_than_an_image",
        "noise divided by a count near 0",
    ),
    Mutant(
        "a teacher is calibrated with the generator, whatever its share",
        "dpdm/teacher.py",
        {", share=params.teacher.share)": ")"},
        "unit test",
        f"{UNIT}teacher.py::test_the_teacher_costs_what_a_release_of_its_share_does",
        "the split of the budget is not the one that the row says",
    ),
    Mutant(
        "a rehearsal ends at the first private step",
        "dpdm/rehearsal.py",
        {"        if not self._left and not self._whole:\n": "        if not self._whole:\n"},
        "unit test",
        f"{UNIT}teacher.py::test_a_teacher_that_mixes_records_is_refused_before_the_generator_trains",
        "a mixing teacher is found after the generator spent its budget",
    ),
    # --- attacks -------------------------------------------------------------------------------------------------
    Mutant(
        "an attack's confidence forgets that it has two error rates",
        "dpdm/attacks/bounds.py",
        {"significance = (1 - confidence) / 2": "significance = 1 - confidence"},
        "unit test",
        f"{UNIT}attack_bounds.py::test_the_epsilon_of_two_error_rates",
        "one bound in ten is above the truth",
    ),
    Mutant(
        "one-run auditing forgets delta",
        "dpdm/attacks/bounds.py",
        {"    if correct and delta:\n": "    if correct < 0:\n"},
        "unit test",
        f"{UNIT}attack_bounds.py::test_the_one_run_bound_is_the_papers",
        "bounds above the truth",
    ),
    Mutant(
        "an attack chooses its shares on the scores that it certifies",
        "dpdm/attacks/white_box.py",
        {"shares = _best_shares(simulate(claim.events),": "shares = _best_shares(played,"},
        "unit test",
        f"{UNIT}white_box.py::test_a_guess_rule_is_fixed_before_the_scores_that_it_certifies_are_seen",
        "the best of many rules exceeds the truth too often",
    ),
    Mutant(
        "an attack chooses its threshold on the scores that it certifies",
        "dpdm/attacks/white_box.py",
        {"bound(promise[1])": "bound(_errors(played, promise[0], *trials))"},
        "unit test",
        f"{UNIT}white_box.py::test_a_guess_rule_is_fixed_before_the_scores_that_it_certifies_are_seen",
        "the best of many rules exceeds the truth too often",
    ),
    Mutant(
        "an attack does not compare a ledger with its recipe",
        "dpdm/attacks/white_box.py",
        {"    check_recipe(value, origin)\n": ""},
        "unit test",
        f"{UNIT}white_box.py::test_events_other_than_the_recipes_are_refused",
        "what is attacked is not what the ledger says",
    ),
]
