"""What the report shows of a study: entries of the paper's tables, their runs, and the numbers that a study varies."""

import math
from pathlib import Path

import pytest

from dpdm.config import Study, load_study, parse_study
from dpdm.errors import UserError
from dpdm.layout import PUBLISHED, Layout
from dpdm.report import registry
from dpdm.report.selection import (
    check_entries,
    sampler_of,
    score_files,
    shown_sets,
    sweeps,
    table_files,
    table_runs,
)
from dpdm.specs import parse_spec
from dpdm.study import selected


def refused(value: dict) -> str:
    with pytest.raises(UserError) as error:
        check_entries(parse_study(value, "study.yaml"))
    return str(error.value)


@pytest.fixture
def with_classifier(tiny_study_dict):
    """The tiny study with a classifier in it."""
    tiny_study_dict["methods"]["net"] = {"impl": "a:B", "kind": "classifier", "params": {"lr": 1.0}}
    return tiny_study_dict


def mapped(study: dict, *entries: dict) -> dict:
    return study | {"tables": {"table_1": list(entries)}}


def test_a_table_that_the_paper_does_not_have_is_refused(tiny_study_dict):
    said = refused(tiny_study_dict | {"tables": {"table_7": []}})
    assert "tables.table_7" in said
    assert "table_6" in said


def test_a_study_maps_its_runs_to_published_rows(with_classifier):
    entries = [
        {"method": "dpdm", "sampler": "default", "published": "DPDM", "variant": "FID"},
        {"method": "class_mean", "published": "PEARL"},
        {"method": "net", "published": "DP-SGD classifier"},
    ]
    study = parse_study(mapped(with_classifier, *entries), "s")
    assert [sampler_of(study, entry) for entry in study.tables["table_1"]] == ["default", "default", None]
    assert parse_study(with_classifier, "s").tables == {}
    assert parse_spec(Study, study.model_dump_json()) == study


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "dpmd"}, "method: no method 'dpmd'; did you mean 'dpdm'?"),
        ({"method": "xyz"}, "method: no method 'xyz'; there are class_mean, dpdm, net"),
        ({"method": "dpdm", "sampler": "defalt"}, "sampler: no sampler 'defalt'; did you mean 'default'?"),
        ({"method": "net", "sampler": "x"}, "sampler: no sampler 'x'; a classifier has none: leave the key out"),
    ],
)  # fmt: skip
def test_a_wrong_entry_of_a_table(with_classifier, entry, message):
    found = refused(mapped(with_classifier, {"published": "DPDM"} | entry))
    assert found.startswith(f"tables.table_1[0].{message}")
    assert "\n" not in found


def test_an_entry_must_choose_among_samplers(tiny_study_dict):
    tiny_study_dict["methods"]["dpdm"]["samplers"]["fast"] = {}
    message = refused(mapped(tiny_study_dict, {"method": "dpdm", "published": "DPDM"}))
    assert message == "tables.table_1[0] lacks the key sampler: dpdm has default, fast"


def test_a_published_row_has_one_generator_but_several_classifiers(with_classifier):
    with_classifier["methods"]["other"] = {"impl": "a:B", "kind": "classifier"}
    entries = [{"method": name, "published": "A"} for name in ("net", "other")]
    parse_study(mapped(with_classifier, *entries), "s")
    for first, second in (("dpdm", "class_mean"), ("net", "dpdm"), ("dpdm", "net"), ("net", "net")):
        both = [{"method": name, "published": "A"} for name in (first, second)]
        message = refused(mapped(with_classifier, *both))
        assert message == f"tables.table_1[1]: {first} is mapped to this published row already; delete one"


def test_a_table_is_about_its_own_datasets_if_the_study_has_any(with_classifier):
    with_classifier["datasets"]["mnist"] = {"source": "mnist", "delta": 1e-5}
    with_classifier["methods"]["dpdm"] |= {"samplers": {"fid": {}, "accuracy": {}}, "overrides": []}
    with_classifier["tables"] = {"table_3": [{"method": "dpdm", "sampler": "fid", "published": "x"}]}
    study = parse_study(with_classifier, "s")
    of_mnist, of_celeba = {("mnist", 28), ("fashion_mnist", 28)}, {("celeba", 32)}
    assert table_runs(study, "table_3", of_mnist) == [("mnist", "dpdm", "fid")]
    assert table_runs(study, "table_3", of_celeba) == [("digits", "dpdm", "fid"), ("mnist", "dpdm", "fid")]
    generators = [("mnist", "class_mean", "default"), ("mnist", "dpdm", "fid"), ("mnist", "dpdm", "accuracy")]
    assert table_runs(study, "table_1", of_mnist) == generators
    assert table_runs(study, "table_2", of_mnist) == [("mnist", "net", "")]
    assert table_runs(study, "table_4", of_mnist) == []


# --- what a study compares ------------------------------------------------------------------------------------


def swept(study: dict, *recipes: dict) -> list:
    """The sweeps of a study whose methods of one impl have these params (or whole entries)."""
    entries = [r if "params" in r else {"params": r} for r in recipes]
    methods = {f"m{i}": {"impl": "a:B"} | entry for i, entry in enumerate(entries)}
    return sweeps(parse_study({**study, "methods": methods}, "x"))


def test_one_number_that_differs_is_a_sweep(tiny_study_dict):
    (sweep,) = swept(tiny_study_dict, {"k": 1, "net": {"width": 2}}, {"k": 4, "net": {"width": 2}})
    assert sweep.key == "k"
    assert sweep.values["digits", 10.0, "default", "m1", "default"] == 4
    assert len(sweep.values) == 4
    (deep,) = swept(tiny_study_dict, {"net": {"width": 2}}, {"net": {"width": 0.5}}, {"net": {"width": 3}})
    assert deep.key == "net.width"


@pytest.mark.parametrize(
    "recipes",
    [
        [{"k": 1}],
        [{"k": 1}, {"k": 1}],
        [{"k": 1, "lr": 1}, {"k": 2, "lr": 2}],
        [{"k": 1, "lr": 1}, {"k": 2, "lr": 1}, {"k": 2, "lr": 2}],
        [{"k": 1}, {"k": "two"}],
        [{"k": False}, {"k": True}],
        [{"k": 1}, {}],
        [{"k": [1]}, {"k": [2]}],
        [{"params": {"k": 1}, "samplers": {"s": {"n": 1}}}, {"params": {"k": 2}, "samplers": {"s": {"n": 2}}}],
        [{"params": {"k": 1}, "samplers": {"s": {"n": 1}}}, {"params": {"k": 1}, "samplers": {"s": {"n": 2}}}],
        [{"params": {"k": 1}}, {"params": {"k": 2}, "overrides": [{"when": {"epsilon": 10}, "params": {"lr": 2}}]}],
    ],
)
def test_anything_else_is_no_sweep(tiny_study_dict, recipes):
    assert swept(tiny_study_dict, *recipes) == []


def test_a_sweep_takes_each_cells_own_value(tiny_study_dict):
    override = {"when": {"epsilon": 10}, "params": {"k": 8}}
    (sweep,) = swept(tiny_study_dict, {"k": 1}, {"params": {"k": 4}, "overrides": [override]})
    cells = [("digits", epsilon, "default", "m1", "default") for epsilon in (10.0, math.inf)]
    assert [sweep.values[cell] for cell in cells] == [8, 4]


def test_samplers_of_one_method_that_differ_in_one_number_are_a_sweep(tiny_study_dict):
    samplers = {"plain": {"guidance": 0.0, "steps": 5}, "more": {"guidance": 1.0, "steps": 5}}
    override = {"when": {"epsilon": 10}, "samplers": {"more": {"guidance": 2.0}}}
    (sweep,) = swept(tiny_study_dict, {"params": {"k": 1}, "samplers": samplers, "overrides": [override]})
    assert sweep.key == "guidance"
    assert [sweep.values["digits", e, "m0", "m0", "more"] for e in (10.0, math.inf)] == [2.0, 1.0]
    assert sweep.values["digits", 10.0, "m0", "m0", "plain"] == 0.0
    samplers["more"]["steps"] = 6
    assert not swept(tiny_study_dict, {"params": {"k": 1}, "samplers": samplers})
    samplers["more"] = {"guidance": "much", "steps": 5}
    assert not swept(tiny_study_dict, {"params": {"k": 1}, "samplers": samplers})


def test_methods_of_other_seeds_are_swept_too(tiny_study_dict):
    methods = {f"k{k}": {"impl": "a:B", "params": {"k": k}, "seeds": [k % 2]} for k in (1, 2)}
    study = parse_study(tiny_study_dict | {"methods": methods, "seeds": [0, 1]}, "x")
    (sweep,) = sweeps(study)
    assert set(sweep.values.values()) == {1, 2}


def test_what_all_samplers_share_is_one_line_each(tiny_study_dict):
    samplers = {"a": {"kind": "ddim"}, "b": {"kind": "churn"}}
    (sweep,) = swept(tiny_study_dict, *({"params": {"k": k}, "samplers": samplers} for k in (1, 4)))
    assert sweep.values["digits", 10.0, "b", "m1", "b"] == 4
    assert {line for _, _, line, _, _ in sweep.values} == {"a", "b"}


def test_which_figures_a_study_has_material_for(tiny_study_dict):
    def compared(**changes):
        study = parse_study(tiny_study_dict | changes, "x")
        return [name for name, (_, dataset) in registry.figures(study).items() if not dataset]

    assert compared() == []
    varied = {f"k{k}": {"impl": "a:B", "params": {"k": k}} for k in (1, 2)}
    assert compared(methods=varied) == ["parameter"]
    names = [name for name, (_, dataset) in registry.figures(parse_study(tiny_study_dict, "x")).items() if dataset]
    assert names == ["digits_curves", "digits_samples"]


def test_the_shipped_ablation_of_the_multiplicity_is_a_sweep():
    root = Path(__file__).parents[2] / "config"
    (sweep,) = sweeps(load_study(root / "ablation_multiplicity.yaml"))
    assert sweep.key == "noise_multiplicity"
    assert [v for (_, epsilon, *_), v in sweep.values.items() if epsilon == 1] == [1, 2, 4, 8, 16, 32]
    (sweep,) = sweeps(load_study(root / "ablation_guidance.yaml"))
    assert sweep.key == "guidance"


# --- which files ----------------------------------------------------------------------------------------------


def test_a_table_needs_the_scores_and_audits_of_what_it_shows(tiny_study_dict):
    tiny_study_dict["methods"]["net"] = {"impl": "a:B", "kind": "classifier"}
    study, layout = parse_study(tiny_study_dict, "tiny"), Layout("r", "tiny")
    ours, theirs = table_files(study, layout, 1), table_files(study, layout, 2)
    assert "r/tiny/runs/digits/dpdm/eps10/seed0/default/fidelity.json" in ours
    assert [path for path in ours if "/net" in path] == []
    assert {"r/tiny/runs/digits/net/eps10/seed0/utility.json", "r/tiny/audits/digits/net.json"} <= set(theirs)
    assert table_files(study, layout, 3) == []
    part = table_files(selected(study, {"only": "seed=1"}), layout, 1)
    assert [path for path in part if "seed0" in path] == []


def test_a_table_of_real_data_sets_needs_those_that_the_paper_has(tiny_study_dict, tmp_path):
    tiny_study_dict["datasets"]["mnist"] = {"source": "mnist", "delta": 1e-5}
    study, layout = parse_study(tiny_study_dict, "tiny"), Layout("r", "tiny")
    assert {path.split("/")[3] for path in table_files(study, layout, 1) if "/runs/" in path} == {"mnist"}
    broken = tmp_path / "published.csv"
    broken.write_text("what,is,this\n1,2,3\n")
    assert any("digits" in path for path in table_files(study, layout, 1, str(broken)))
    assert str(broken) != PUBLISHED


def test_a_set_has_a_third_file_of_scores_where_the_fid_is_asked_for(tiny_study_dict):
    assert score_files(parse_study(tiny_study_dict, "x")) == ("fidelity.json", "utility.json")
    tiny_study_dict["evaluation"]["fid"] = {}
    assert score_files(parse_study(tiny_study_dict, "x"))[2:] == ("inception.json",)


def test_a_sample_page_shows_the_first_seed_that_has_runs(tiny_study_dict):
    tiny_study_dict["methods"]["dpdm"]["samplers"] = {"fast": {"num_sampling_steps": 2}, "fine": {}}
    study = parse_study(tiny_study_dict, "tiny")
    assert {(run.seed, sampler) for run, sampler in shown_sets(study, "digits")} == {
        (0, "default"), (0, "fast"), (0, "fine")
    }  # fmt: skip
    assert {run.seed for run, _ in shown_sets(selected(study, {"only": "seed=1"}), "digits")} == {1}
    of_each = shown_sets(selected(study, {"without": "method=dpdm seed=0"}), "digits")
    assert {(run.method, run.seed) for run, _ in of_each} == {("class_mean", 0), ("dpdm", 1)}
