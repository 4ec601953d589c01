"""Tables: numbers by hand, layout, escapes, and the same cells in every format."""

import math
import shutil
import subprocess

import pandas as pd
import pytest
from measured import measured

from dpdm import artifacts
from dpdm.config import parse_study
from dpdm.report import machines, tables
from dpdm.report.collect import AUDITS, BENCHMARKS, METRICS

MOVES = ["study", "method", "metric", "extractor", "difference", "relative"]  # columns of machines.csv that are read


def rows_of(
    method, epsilon, values, metric="acc_cnn", reference="test", sampler="default", dataset="digits", extractor=None
):
    blank = {name: kind() for name, kind in METRICS.items()}
    place = {"dataset": dataset, "method": method, "epsilon": epsilon, "sampler": sampler}
    what = measured(metric, reference, extractor)
    return [{**blank, **place, **what, "seed": seed, "value": value} for seed, value in enumerate(values)]


@pytest.fixture
def metrics():
    return pd.DataFrame(
        [
            *rows_of("dp_gan", "10", [60.0, 70.0]),
            *rows_of("dp_gan", "1", [40.0, 50.0, 60.0]),
            *rows_of("dp_gan", "1", [12.0, 14.0, 16.0], "fd", "train"),
            *rows_of("dp_gan", "1", [99.0] * 3, "fd", "test"),
            *rows_of("dp_gan", "inf", [80.0]),
            *rows_of("mean", "1", [45.0, 45.0]),
            *rows_of("mean", "inf", [79.0]),
            *rows_of("mean", "1", [200.0], "fd", "train"),
            *rows_of("label_only", "", [10.0], sampler=""),
            *rows_of("real", "", [97.0, 98.0], sampler=""),
        ]
    )


def cell(table, method, epsilon, header):
    found = table.cells[(table.cells["Method"] == method) & (table.cells["ε"] == epsilon)]
    assert len(found) == 1
    return found[header].item()


def test_mean_std_and_n_by_hand(metrics):
    table = tables.results_table(metrics)
    assert cell(table, "dp_gan", "1", "CNN accuracy % ↑") == "50.0 ± 10.0 (3)"
    assert cell(table, "dp_gan", "10", "CNN accuracy % ↑") == "60.0; 70.0 (2)"
    assert cell(table, "dp_gan", "∞", "CNN accuracy % ↑") == "80.0 (1)"
    assert cell(table, "dp_gan", "∞", "FD (train) ↓") == "–"  # noqa: RUF001
    assert cell(table, "dp_gan", "1", "FD (train) ↓") == "14.0 ± 2.0 (3)"
    numbers = table.data.set_index(["method", "epsilon"]).loc[("dp_gan", "10")]
    assert numbers["acc_cnn_test_mean"] == 65
    assert numbers["acc_cnn_test_std"] == pytest.approx(math.sqrt(50))
    assert numbers["acc_cnn_test_n"] == 2


def test_a_group_without_a_value_has_no_summary(metrics):
    metrics.loc[metrics["epsilon"] == "10", "value"] = math.nan
    known = tables.summaries(metrics, "method", "epsilon")
    summary = known["acc_cnn", "", "test", "dp_gan", "1"]
    assert summary[:3] == pytest.approx((50.0, 10.0, 3))
    assert summary.values == {0: 40.0, 1: 50.0, 2: 60.0}
    assert ("acc_cnn", "", "test", "dp_gan", "10") not in known


def test_a_link_wraps_its_cell_alone(metrics):
    table = tables.results_table(metrics)
    page = tables.to_html(table, {(0, "Method"): "#a&b"})
    assert page.count("<a ") == 1
    assert '<td><a href="#a&amp;b">real (ceiling)</a></td>' in page


def test_nan_is_not_a_seed(metrics):
    metrics.loc[(metrics["epsilon"] == "10") & (metrics["seed"] == 1), "value"] = math.nan
    assert cell(tables.results_table(metrics), "dp_gan", "10", "CNN accuracy % ↑") == "60.0 (1)"


def test_ceiling_first_then_rising_epsilon_then_floor(metrics):
    table = tables.results_table(metrics)
    assert list(zip(table.cells["ε"], table.cells["Method"], strict=True)) == [
        ("–", "real (ceiling)"),  # noqa: RUF001
        ("1", "dp_gan"),
        ("1", "mean"),
        ("10", "dp_gan"),
        ("∞", "dp_gan"),
        ("∞", "mean"),
        ("–", "label_only (floor)"),  # noqa: RUF001
    ]
    assert [len(body) for body in table.bodies()] == [1, 2, 1, 2, 1]
    assert list(table.cells.columns) == ["Dataset", "ε", "Method", "FD (train) ↓", "CNN accuracy % ↑"]


def bold_of(table):
    return {(table.cells.iloc[i]["Method"], table.cells.iloc[i]["ε"], header) for i, header in table.bold}


def test_below_three_seeds_there_is_no_deviation_and_no_bold(metrics):
    """Two values have no spread worth a "±", and 60 against 45 in two seeds proves no winner."""
    two = metrics[metrics["seed"] < 2]
    table = tables.results_table(two)
    assert cell(table, "dp_gan", "1", "CNN accuracy % ↑") == "40.0; 50.0 (2)"
    assert not [text for text in table.cells.to_numpy().ravel() if "±" in text]
    assert table.bold == frozenset()


def test_bold_are_the_best_and_all_that_it_cannot_be_distinguished_from():
    rows = [
        *rows_of("best", "1", [90.0, 80.0, 70.0]),
        *rows_of("near", "1", [89.0, 80.5, 69.0]),  # its gaps have both signs
        *rows_of("behind", "1", [80.0, 70.1, 60.1]),  # behind in every seed, by as much
        *rows_of("far", "1", [50.0, 40.0, 30.0]),
        *rows_of("few", "1", [99.0, 99.0]),
        *rows_of("best", "inf", [99.0] * 3), *rows_of("far", "inf", [98.0] * 3), *rows_of("best", "10", [99.0] * 3),
    ]  # fmt: skip
    table = tables.results_table(pd.DataFrame(rows))
    assert bold_of(table) == {(name, "1", "CNN accuracy % ↑") for name in ("best", "near")}
    assert bold_of(table.without("Dataset")) == bold_of(table)


def test_where_all_are_as_good_as_the_best_none_is_bold():
    rows = [*rows_of("a", "1", [90.0, 80.0, 70.0]), *rows_of("b", "1", [89.0, 81.0, 70.0])]
    assert not tables.results_table(pd.DataFrame(rows)).bold
    assert tables.results_table(pd.DataFrame([*rows, *rows_of("c", "1", [50.0, 40.0, 30.0])])).bold


def test_sets_of_one_method_have_no_rival():
    better, worse = (rows_of("a", "1", values) for values in ([90.0, 90.1, 90.2], [10.0, 10.1, 10.2]))
    rows = [*better, *(row | {"sampler": "other"} for row in worse)]
    assert not tables.results_table(pd.DataFrame(rows)).bold


def test_within_what_machines_change_nobody_is_behind(monkeypatch):
    """In every seed 0.9 points, or 9 % of a distance, behind: none where another processor moves both by more."""

    def bold(points, part, of="pearl"):
        spreads = [("acc_cnn", "", points, part), ("fd", "small_cnn", 1.0, part), ("kid", "efflite", 1.0, 0.9)]
        frame = pd.DataFrame([("", of, *row) for row in spreads], columns=MOVES)
        monkeypatch.setattr(machines, "spreads", lambda: frame)
        rows = [
            *rows_of("best", "1", [90.0, 80.0, 70.0]), *rows_of("behind", "1", [89.1, 79.1, 69.1]),
            *rows_of("best", "1", [20.0, 20.1, 20.2], "fd"), *rows_of("behind", "1", [21.8, 21.9, 22.0], "fd"),
            *rows_of("far", "1", [50.0, 40.0, 30.0]), *rows_of("far", "1", [80.0, 80.1, 80.2], "fd"),
        ]  # fmt: skip
        return {(method, header.split()[0]) for method, _, header in bold_of(tables.results_table(pd.DataFrame(rows)))}

    assert bold(0.4, 0.04) == {("best", "CNN"), ("best", "FD")}
    assert bold(0.5, 0.04) == {("best", "CNN"), ("behind", "CNN"), ("best", "FD")}  # the sum of both moves counts
    assert bold(0.4, 0.05) == {("best", "CNN"), ("best", "FD"), ("behind", "FD")}
    for one in ("best", "behind"):  # the other moves by as much
        assert bold(0.5, 0.05, of=one) == {(name, title) for name in ("best", "behind") for title in ("CNN", "FD")}


def test_with_other_seeds_the_best_mean_is_not_the_best_if_it_is_beaten():
    rows = [
        *rows_of("lucky", "1", [85.0, 85.0, 85.0, 99.0, 99.0]), *rows_of("best", "1", [88.0, 88.0, 88.0]),
        *rows_of("far", "1", [30.0] * 3),
    ]  # fmt: skip
    assert {method for method, *_ in bold_of(tables.results_table(pd.DataFrame(rows)))} == {"best"}


def test_a_method_that_hardly_moves_is_not_held_to_the_worst_of_another(monkeypatch):
    moves = [("", name, "acc_cnn", "", points, 0.1) for name, points in (("loud", 9.0), ("best", 0.1), ("near", 0.1))]
    monkeypatch.setattr(machines, "spreads", lambda: pd.DataFrame(moves, columns=MOVES))
    values = {"best": [90.0, 80.0, 70.0], "near": [89.1, 79.1, 69.1], "loud": [88.0, 78.0, 68.0]}
    table = tables.results_table(pd.DataFrame([row for name in values for row in rows_of(name, "1", values[name])]))
    assert {name for name, *_ in bold_of(table)} == {"best", "loud"}


def test_precision_is_never_bold_nor_the_teacher():
    """Noise has 0.999; and what a teacher knows is no score of the images."""
    metrics = ("precision", "teacher_acc", "recall")
    pairs = [(m, v, metric) for m, v in (("a", 0.9), ("b", 0.1)) for metric in metrics]
    table = tables.results_table(pd.DataFrame([r for m, v, k in pairs for r in rows_of(m, "1", [v] * 3, k, "train")]))
    assert bold_of(table) == {("a", "1", "Recall (train) ↑")}


def test_real_images_that_are_passed_are_no_ceiling(metrics):
    assert "real (ceiling)" in set(tables.results_table(metrics).cells["Method"])
    metrics.loc[(metrics["method"] == "dp_gan") & (metrics["epsilon"] == "10"), "value"] = 99.0
    assert tables.above_ceiling(metrics) == {("digits", "CNN"): [("dp_gan", "10")]}
    assert "real (ceiling)" not in set(tables.results_table(metrics).cells["Method"])
    other = metrics["method"] == "dp_gan"
    metrics.loc[other, "protocol"] = "paper"  # which says nothing of what real images reach under another
    assert tables.above_ceiling(metrics) == {}


def test_a_row_says_in_what_its_run_is_not_the_published_one(metrics, audits):
    """Of each epsilon its own; a mark of several rows has what they share."""
    for epsilon, text in {"1": "K = 4, draws ÷ 90", "10": "K = 4, draws ÷ 70", "inf": "K = 4"}.items():
        metrics.loc[(metrics["method"] == "dp_gan") & (metrics["epsilon"] == epsilon), "departures"] = text
    names = tables.results_table(metrics).cells["Method"].tolist()
    shown = ["dp_gan (K = 4, draws ÷ 90)", "mean", "dp_gan (K = 4, draws ÷ 70)", "dp_gan (K = 4)", "mean"]
    assert names == ["real (ceiling)", *shown, "label_only (floor)"]
    assert tables.departure_marks(metrics, "method") == {
        "dp_gan": " (K = 4)", "mean": "", "label_only": "", "real": ""
    }  # fmt: skip
    audits["departures"] = "K = 4"
    assert set(tables.audit_table(audits).cells["Method"]) == {"dp_gan (K = 4)"}


def test_sampler_column_only_where_it_tells_something(metrics):
    assert "Sampler" not in tables.results_table(metrics).cells.columns
    more = pd.concat([metrics, pd.DataFrame(rows_of("dp_gan", "1", [1.0], sampler="ddim"))])
    table = tables.results_table(more)
    assert table.cells.loc[table.cells["Method"] == "dp_gan", "Sampler"].tolist()[:2] == ["ddim", "default"]


@pytest.fixture
def with_classifier(metrics):
    """A classifier of its own beside the generators: one accuracy per run."""
    rows = rows_of("net", "1", [95.0, 97.0], sampler="") + rows_of("net", "inf", [98.0, 98.0], sampler="")
    return pd.concat([metrics, pd.DataFrame([{**row, "protocol": "direct"} for row in rows])], ignore_index=True)


def test_a_classifier_says_so_and_fills_its_column_alone(with_classifier):
    table = tables.results_table(with_classifier)
    assert cell(table, "net (classifier)", "1", "CNN accuracy % ↑") == "95.0; 97.0 (2)"
    assert cell(table, "net (classifier)", "1", "FD (train) ↓") == "–"  # noqa: RUF001
    assert list(table.data["method"]).count("net") == 2  # programs read its plain name
    assert "Sampler" not in table.cells.columns
    assert table.cells["Method"].tolist().count("dp_gan") == 3


def test_a_classifier_trained_on_the_images_does_not_compete_with_generators(metrics):
    rows = [*rows_of("mean", "1", [45.0] * 3), *rows_of("gan", "1", [60.0] * 3), *rows_of("net", "1", [95.0] * 3)]
    frame = pd.DataFrame([row | ({"protocol": "direct"} if row["method"] == "net" else {}) for row in rows])
    assert bold_of(tables.results_table(frame)) == {("gan", "1", "CNN accuracy % ↑")}


def test_two_extractors_have_two_columns():
    rows = [*rows_of("a", "1", [1.0], "fd", "train"), *rows_of("a", "1", [2.0], "fd", "train", extractor="pixels")]
    headers = list(tables.results_table(pd.DataFrame(rows)).cells.columns[3:])
    assert headers == ["FD small CNN (train) ↓", "FD pixels (train) ↓"]


def test_an_unknown_metric_is_shown_under_its_name_and_better_is_what_its_row_says():
    rows = [r for m, v in (("a", 1.0), ("b", 9.0)) for r in rows_of(m, "1", [v] * 3, "coverage", "train")]
    for direction, best, arrow in (("higher", 1, "↑"), ("lower", 0, "↓")):
        table = tables.results_table(pd.DataFrame(rows).assign(direction=direction))
        assert table.cells.columns[3] == f"coverage (train) {arrow}"
        assert table.bold == {(best, f"coverage (train) {arrow}")}


def test_each_dataset_fills_the_same_columns():
    rows = [r for d in ("mnist", "digits") for r in rows_of("a", "1", [1.0], "fd", "train", dataset=d)]
    table = tables.results_table(pd.DataFrame(rows))
    assert list(table.cells["FD (train) ↓"]) == ["1.00 (1)"] * 2
    assert list(table.data["fd_small_cnn_train_mean"]) == [1.0, 1.0]


def test_fid_has_a_column_for_each_side_and_inception_s_others_stay_apart():
    names = [("fid", "inception"), ("fd", "small_cnn"), ("kid", "small_cnn"), ("kid", "inception"),
             ("recall", "inception")]  # fmt: skip
    places = [(name, side, extractor) for name, extractor in names for side in ("test", "train")]
    metrics = pd.DataFrame([
        row for v, (name, side, extractor) in enumerate(places, 1)
        for row in rows_of("a", "1", [float(v)], name, side, extractor=extractor)
    ])  # fmt: skip
    table = tables.results_table(metrics)
    shown = {header: table.cells[header].item() for header in table.cells.columns[3:]}
    assert shown == {
        "FID (train) ↓": "2.00 (1)",
        "FID (test) ↓": "1.00 (1)",
        "FD small CNN (train) ↓": "4.00 (1)",
        "KID small CNN (train) ↓": "6.00 (1)",
        "KID Inception (train) ↓": "8.00 (1)",
        "Recall Inception (train) ↑": "10.000 (1)",
    }
    assert list(shown)[:2] == ["FID (train) ↓", "FID (test) ↓"]
    assert {"fid_inception_train_mean", "fid_inception_test_mean"} <= set(table.data.columns)


def test_fid_needs_no_extractor_s_name():
    rows = [*rows_of("a", "1", [1.0], "fid", "train"), *rows_of("a", "1", [2.0], "fd", "train")]
    headers = list(tables.results_table(pd.DataFrame(rows)).cells.columns[3:])
    assert headers == ["FID (train) ↓", "FD (train) ↓"]


def test_every_format_holds_the_same_cells(metrics, tmp_path):
    third = metrics[(metrics["method"] == "mean") & (metrics["seed"] == 1)].assign(seed=2)
    worse = pd.concat([metrics[metrics["method"] == "mean"], third]).assign(
        method="worse", value=lambda f: f["value"] - 30
    )
    table = tables.results_table(pd.concat([metrics, third, worse]))  # rivals of three seeds
    tables.write_table(table, tmp_path / "results")
    read = {s: artifacts.read_bytes(tmp_path / f"results.{s}").decode() for s in ("csv", "md", "tex", "html")}
    for text, floor in (("md", "10.0 (1)"), ("tex", "10.0 (1)"), ("html", '<td class="n">10.0 (1)</td>')):
        assert floor in read[text]
    assert "**50.0 ± 10.0 (3)**" in read["md"]
    assert r"\textbf{50.0 $\pm$ 10.0 (3)}" in read["tex"]
    assert "<strong>50.0 ± 10.0 (3)</strong>" in read["html"]
    assert (
        read["csv"]
        .splitlines()[0]
        .startswith("dataset,epsilon,method,protocol,fd_small_cnn_train_mean,fd_small_cnn_train_std")
    )
    assert "digits,inf,dp_gan,,,,0,80.0,,1" in read["csv"]


def test_tex_escapes_special_characters(metrics):
    text = tables.to_tex(tables.results_table(metrics))
    assert r"dp\_gan" in text
    assert "dp_gan" not in text
    assert r"\shortstack{CNN\\accuracy \% $\uparrow$}" in text
    assert text.isascii()
    assert tables.escape_tex("a\\b&{c}") == r"a\textbackslash{}b\&\{c\}"
    assert text.count(r"\midrule") == 5


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_tex_compiles(metrics, audits, tmp_path):
    body = tables.to_tex(tables.results_table(metrics)) + "\n\n" + tables.to_tex(tables.audit_table(audits))
    (tmp_path / "x.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}".replace(
            "% \\usepackage{booktabs}\n", ""
        )
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-600:]


def test_a_long_header_takes_two_lines_in_tex():
    assert tables._tex_header("MLP %, paper") == r"\shortstack{MLP \%,\\paper}"
    assert tables._tex_header("CNN % ↑") == r"CNN \% $\uparrow$"
    assert tables._tex_header("Differences") == "Differences"


def test_a_table_without_rows_keeps_its_notes_in_every_format():
    cells = pd.DataFrame({"Dataset": [], "N": []}, dtype=object)
    nothing = tables.Table(cells, cells, notes=("said",))
    for text in (tables.to_tex(nothing), tables.to_markdown(nothing), tables.to_html(nothing)):
        assert "said" in text
        assert "N" in text


def test_results_of_a_dataset_leave_out_metrics_without_a_value(metrics):
    metrics.loc[metrics["metric"] == "acc_cnn", "value"] = math.nan
    assert [c for c in tables.dataset_results(metrics, "digits").cells.columns if "CNN" in c] == []
    assert [c for c in tables.results_table(metrics).cells.columns if "CNN" in c] == ["CNN accuracy % ↑"]


def test_tex_has_a_tabular_per_dataset_with_the_columns_that_papers_print(metrics, tmp_path):
    more = rows_of("mean", "1", [2.0], "kid", "train")
    both = pd.concat([metrics, pd.DataFrame(more), metrics.assign(dataset="other")])
    tables.write_table(tables.results_table(both), tmp_path / "x")
    text = artifacts.read_bytes(tmp_path / "x.tex").decode()
    first, second = text.split(r"\bigskip")
    assert ("digits" in first, "other" in first, "other" in second) == (True, False, True)
    assert "KID" not in text
    assert "FD" in first
    assert "KID" in artifacts.read_bytes(tmp_path / "x.md").decode()


def test_protocols_are_printed_where_there_are_several(metrics):
    accuracies = metrics["metric"].str.startswith("acc")
    metrics.loc[accuracies, "protocol"] = "quick"
    table = tables.results_table(metrics)
    assert "Protocol" not in table.cells.columns
    assert "quick" in set(table.data["protocol"]) <= {"quick", ""}
    metrics.loc[accuracies & (metrics["method"] == "dp_gan"), "protocol"] = "paper"
    mixed = tables.results_table(metrics)
    assert set(mixed.cells.loc[mixed.cells["Method"] == "dp_gan", "Protocol"]) == {"paper"}
    metrics["protocol"] = "paper"
    both = pd.concat([metrics, metrics.assign(dataset="other", protocol="quick")])
    for frame, shown in ((both, True), (metrics, False)):  # one table says it as the other does
        assert ("Protocol" in tables.dataset_results(frame, "digits").cells.columns) == shown
    assert mixed.bold == table.bold


def test_html_escapes(metrics):
    metrics["method"] = metrics["method"].replace("mean", "<b>&")
    text = tables.to_html(tables.results_table(metrics))
    assert "&lt;b&gt;&amp;" in text
    assert "<b>" not in text


def test_empty_tables_are_tables(tmp_path):
    empty = pd.DataFrame(columns=list(METRICS))
    tables.write_table(tables.results_table(empty), tmp_path / "empty")
    tables.write_table(tables.audit_table(pd.DataFrame(columns=list(AUDITS))), tmp_path / "audit")
    assert artifacts.read_bytes(tmp_path / "empty.csv") == b"dataset,epsilon,method,protocol\n"


@pytest.fixture
def audits():
    blank = {name: kind() for name, kind in AUDITS.items()}
    run = {
        **blank, "dataset": "digits", "method": "dp_gan", "epsilon": "1", "target_epsilon": 1.0, "delta": 3.5e-4,
        "mechanism": "poisson_subsampled_gaussian", "name": "net", "noise_multiplier": 3.14159, "sample_rate": 0.178,
        "steps": 300, "accountant": "rdp", "passed": True, "epsilon_prv": 0.9, "epsilon_pld": 0.8,
        "recipe_checked": True, "share_rdp": math.nan, "share_prv": math.nan,
    }  # fmt: skip
    release = {"mechanism": "gaussian", "name": "", "sample_rate": 1.0, "steps": 1, "noise_multiplier": 7.0}
    endless = {"epsilon": "inf"} | dict.fromkeys(
        ("target_epsilon", "epsilon_rdp", "epsilon_prv", "epsilon_pld"), math.inf
    )
    return pd.DataFrame(
        [
            {**run, "seed": 0, "epsilon_rdp": 0.95},
            {**run, "seed": 0, "epsilon_rdp": 0.95, **release},
            {**run, "seed": 1, "epsilon_rdp": 0.99, "passed": False},
            {**run, "seed": 1, "epsilon_rdp": 0.99, "passed": False, **release},
            {**run, **endless, "noise_multiplier": 0.0},
        ]
    )


def test_public_data_are_in_every_table(metrics, audits):
    plain = tables.results_table(metrics), tables.audit_table(audits)
    assert all("public_data" not in table.data for table in plain)
    metrics.loc[metrics["method"] == "dp_gan", "public_data"] = "imagenet"
    audits["public_data"] = "imagenet"
    for table, column in (tables.results_table(metrics), "method"), (tables.audit_table(audits), "method"):
        learned = table.data[column] == "dp_gan"
        assert set(table.data.loc[learned, "public_data"]) == {"imagenet"}
        assert set(table.data.loc[~learned, "public_data"]) <= {""}
        names = table.cells["Method"][learned.to_numpy()]
        assert names.str.contains("uses public data: imagenet", regex=False).all()
        assert not table.cells["Method"][~learned.to_numpy()].str.contains("public").any()


def test_audit_table_takes_the_worst_seed_and_names_the_mechanism(audits):
    table = tables.audit_table(audits)
    assert len(table.cells) == 2
    row = table.cells.iloc[0]
    spent = [row[f"Spent, {name}"] for name in ("RDP", "PRV", "PLD")]
    assert (row["Target ε"], spent, row["Runs"]) == ("1", ["0.990", "0.900", "0.800"], "2")
    assert row["Accounting"] == "✗ FAILED"
    assert (row["Attacked"], row["Attack"]) == ("–", "–")  # noqa: RUF001
    assert row["Mechanism"] == (
        "net: 300 × Poisson-subsampled Gaussian, q = 0.178, noise 3.14; 1 × Gaussian, noise 7"  # noqa: RUF001
    )
    last = table.cells.iloc[1]
    assert (last["Target ε"], last["Spent, RDP"], last["Accounting"]) == ("∞", "∞", "no noise: no guarantee")
    assert (table.notes, tables.to_tex(table).isascii()) == ((), True)
    audits.loc[[0, 2], "share_rdp"], audits.loc[[0, 2], "share_prv"] = 0.921, 0.934
    audits.loc[[1, 3], "share_rdp"], audits.loc[[1, 3], "share_prv"] = 0.079, 0.066
    shared = tables.audit_table(audits)
    mechanisms = shared.cells["Mechanism"][0].split("; ")
    assert [mechanism.partition(" (")[2] for mechanism in mechanisms] == ["92.1% / 93.4%)", "7.9% / 6.6%)"]
    assert "(" not in shared.cells["Mechanism"][1]
    assert "RDP / PRV" in shared.notes[0]
    audits.loc[0, "recipe_checked"] = False  # of one seed: nothing vouches for the row
    unchecked = tables.audit_table(audits)
    assert unchecked.cells["Accounting"][0] == "✗ FAILED, recipe unchecked"
    assert list(unchecked.data["recipe_checked"]) == [False, True]


def test_the_table_of_methods_has_those_that_run_and_how_they_were_tuned(tiny_study_dict):
    tiny_study_dict["methods"]["dpdm"]["tuning"] = {"settings": 5, "data": "MNIST"}
    whole = tables.method_table(parse_study(tiny_study_dict, "s")).cells.set_index("Method")
    assert list(whole.index) == list(tiny_study_dict["methods"])
    assert tuple(whole.loc["dpdm", ["Settings tried", "Tried on"]]) == ("5", "MNIST")
    part = tables.method_table(parse_study(tiny_study_dict | {"only": "method=dpdm"}, "s"))
    assert list(part.cells["Method"]) == ["dpdm"]


@pytest.mark.parametrize(("exceeded", "text"), [(False, "≥ 0.35"), (True, "≥ 0.35 ✗ ABOVE TARGET")])
def test_audit_table_has_the_attacked_bound_and_how_it_was_found(audits, exceeded, text):
    bound = {"attack": "gaussian", "attacked_epsilon": 0.351, "attack_certified": 0.2, "attack_confidence": 0.95,
             "attack_runs": 200, "attack_canaries": 10_000, "attack_exceeded": exceeded}  # fmt: skip
    for name, value in bound.items():
        audits.loc[audits["epsilon"] == "1", name] = value
    table = tables.audit_table(audits)
    assert table.cells["Attacked"].tolist() == [text, "–"]  # noqa: RUF001
    assert table.cells["Attack"][0] == (
        "noise taken for Gaussian (≥ 0.20 without that), 95% confidence, 10,000 canaries in 200 runs"
    )
    assert table.data["attacked_epsilon"][0] == 0.351
    assert table.data["attack_exceeded"].tolist() == [exceeded, False]
    assert tables.to_tex(table).isascii()


def test_resource_table_adds_up():
    rows = [("train", "digits", "a", 1.0, 100.0, 0), ("train", "digits", "a", 3.0, math.nan, 0)]
    rows.append(("fit", "", "", 6.0, math.nan, 0))
    table = tables.resource_table(pd.DataFrame(rows, columns=list(BENCHMARKS)))
    assert table.cells.to_numpy().tolist() == [
        ["fit", "–", "1", "6.0", "6.0", "6.0", "–"],  # noqa: RUF001
        ["train", "a", "2", "2.0", "3.0", "4.0", "100"],
        ["total", "–", "3", "3.3", "6.0", "10.0", "100"],  # noqa: RUF001
    ]


def test_the_commonest_count_leaves_the_cells_and_others_stay():
    cells = pd.DataFrame(
        {"Method": ["a (3)", "b", "c"], "FD": ["1.0 ± 0.1 (3)", "2.0 (1)", tables.MISSING], "x": ["5 (3)"] * 3}
    )
    table, n = tables.Table(cells, cells, frozenset(["FD", "x"])).counted_once()
    assert n == 3
    assert table.cells["FD"].tolist() == ["1.0 ±\N{NO-BREAK SPACE}0.1", "2.0 (1)", tables.MISSING]
    assert table.cells["Method"].tolist() == ["a (3)", "b", "c"]
    assert tables.Table(cells, cells[["Method"]]).counted_once()[1] == 0


def test_the_costliest_rule_is_first_and_the_total_last():
    jobs = pd.DataFrame([("a", "d", "m", 1.0, 1.0), ("b", "d", "m", 9.0, 1.0)],
                        columns=["rule", "dataset", "method", "seconds", "max_rss_mb"])  # fmt: skip
    assert tables.resource_table(jobs).data["rule"].tolist() == ["b", "a", "total"]
