"""`dpdm compare`: a source for every row, and no column that mixes protocols or extractors."""

import os
from pathlib import Path

import pandas as pd
import pytest
from refusals import refused

from dpdm import artifacts
from dpdm.report.collect import METRICS, write_csv
from dpdm.report.compare import compare

ROW = {
    "study": "one", "dataset": "digits", "method": "dpdm", "epsilon": "10", "delta": 1e-5, "accountant": "rdp",
    "seed": 0, "sampler": "default", "metric": "acc_cnn", "extractor": "", "direction": "higher", "reference": "test",
    "value": 50.0, "num_synthetic": 100, "protocol": "quick", "version": "0.1.0", "commit": "a" * 40, "code": "c",
    "public_data": "", "departures": "", "spread": float("nan"),
}  # fmt: skip
UNKNOWN = "?"  # an extractor that the score files measured by and do not describe
FD = {"metric": "fd", "extractor": "small_cnn", "direction": "lower", "reference": "train", "protocol": ""}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Writes a results folder with these rows, changed from ROW, and what its score files say of the extractor."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, *rows: dict, extractor: str = "", images: str = "", judged: int = 0) -> str:
        folder = f"results/{name}"
        frame = pd.DataFrame([ROW | {"study": name} | row for row in rows])[list(METRICS)]
        write_csv(f"{folder}/metrics.csv", frame)
        if extractor:
            scores = {"coordinates": {"dataset": "digits"}, "metrics": [FD]}
            scores |= {"small_cnn": {"trained_on": extractor}} if extractor != UNKNOWN else {}
            scores |= {"num_judged": judged} if judged else {}
            artifacts.write_json(f"{folder}/runs/x/fidelity.json", scores)
        if images:
            artifacts.write_json("results/data/digits/dataset.json", {"sha256": {"train": images}})
        return folder

    return write


def test_every_row_names_its_source(folders, run_cli):
    folders("one", {}, {"seed": 1, "value": 52.0}, {"seed": 0, "commit": "b" * 40 + "-dirty", "value": 70.0})
    folders("two", {"value": 61.0})
    code, stdout, _ = run_cli("compare", "results/one", "results/two", "--out", "page.html")
    assert code == 0
    table, _ = compare(["results/one", "results/two"])
    assert table.cells.set_index("Source")["CNN accuracy % ↑"].to_dict() == {
        "one @ aaaaaaa": "50.0; 52.0 (2)", "one @ bbbbbbb-dirty": "70.0 (1)", "two @ aaaaaaa": "61.0 (1)",
    }  # fmt: skip
    page = Path("page.html").read_text()
    for text in (stdout, page):
        assert all(word in text for word in ("one @ bbbbbbb-dirty", "results/two", "61.0 (1)", "a" * 40))


def test_one_study_in_two_folders_keeps_its_sources_apart(folders):
    folders("one", {})
    folders("copy", {"study": "one", "value": 61.0})
    table, _ = compare(["results/one", "results/copy"])
    assert list(table.cells["Source"]) == ["one @ aaaaaaa, results/one", "one @ aaaaaaa, results/copy"]


def test_protocols_have_a_column_each(folders):
    folders("one", {})
    folders("two", {"value": 61.0, "protocol": "paper"}, {"method": "svm", "sampler": "", "protocol": "direct"})
    table, _ = compare(["results/one", "results/two"])
    rows = table.cells.set_index(["Source", "Method"])
    columns = [name for name in rows.columns if "CNN" in name]
    assert len(columns) == 3
    for protocol in ("quick", "paper", "direct"):
        (column,) = [name for name in columns if protocol in name]
        assert (rows[column] != "–").sum() == 1  # noqa: RUF001


def test_sets_of_other_sizes_have_a_column_each(folders):
    """More images train better classifiers."""
    anchor = {"method": "real", "sampler": "", "epsilon": "", "num_synthetic": 1437, "value": 99.0}
    classifier = {"method": "svm", "sampler": "", "protocol": "direct", "num_synthetic": 0}
    folders("one", {}, anchor, classifier)
    folders("two", {"num_synthetic": 6000, "value": 61.0}, anchor)
    table, _ = compare(["results/one", "results/two"])
    rows = table.cells.set_index(["Source", "Method"])
    for source, images in (("one", "100 images"), ("two", "6,000 images")):
        (column,) = [name for name in rows.columns if images in name]
        assert set(rows.index[rows[column] != "–"]) == {(f"{source} @ aaaaaaa", m) for m in ("dpdm", "real (ceiling)")}  # noqa: RUF001
    assert sum("CNN" in name for name in rows.columns) == 3
    folders("two", {"dataset": "mnist", "num_synthetic": 6000})
    assert "CNN accuracy % ↑" in compare(["results/two"])[0].cells  # data sets have rows of their own anyway


@pytest.mark.parametrize(
    ("one", "two", "shown"),
    [
        ({"extractor": "x"}, {"extractor": "x"}, True),
        ({"extractor": "x"}, {"extractor": "y"}, False),
        ({"extractor": "x"}, {}, False),
        ({}, {}, False),
        ({"extractor": UNKNOWN}, {"extractor": UNKNOWN}, False),
    ],
)
def test_distances_need_one_extractor(folders, one, two, shown):
    folders("one", {}, FD, **one)
    folders("two", {"value": 61.0}, FD, **two)
    table, page = compare(["results/one", "results/two"])
    assert ("FD (train) ↓" in table.cells) == shown
    notes = [note for note in table.notes if "FD" in note]
    assert len(notes) == (not shown)
    assert all(word in page for note in notes for word in ("digits", "small_cnn", "results/one", "results/two"))


def test_distances_need_equally_many_images(folders):
    folders(
        "one", {}, FD, {**FD, "method": "real", "sampler": "", "epsilon": "", "num_synthetic": 60_000}, extractor="x"
    )
    folders("two", {}, FD, extractor="x")
    assert "FD (train) ↓" in compare(["results/one", "results/two"])[0].cells
    folders("two", {}, {**FD, "num_synthetic": 200}, extractor="x")
    table, _ = compare(["results/one", "results/two"])
    assert "FD (train) ↓" not in table.cells
    assert any("100, 200" in note for note in table.notes)
    folders("two", {}, {**FD, "num_synthetic": 200}, extractor="x", judged=100)  # distances of some of the images
    assert "FD (train) ↓" in compare(["results/one", "results/two"])[0].cells
    folders("two", {}, FD, extractor="x", judged=50)
    assert "FD (train) ↓" not in compare(["results/one", "results/two"])[0].cells


def test_a_distance_of_one_folder_needs_no_other(folders):
    folders("one", {}, FD)
    folders("two", {"value": 61.0})
    assert "FD (train) ↓" in compare(["results/one", "results/two"])[0].cells


@pytest.mark.parametrize("epsilon", ["ten", "-1", "nan"])
def test_an_epsilon_that_is_no_number_is_named(folders, run_cli, epsilon):
    folders("one", {}, {"epsilon": epsilon})
    refused(run_cli("compare", "results/one"), "results/one/metrics.csv, line 3", epsilon)


@pytest.mark.parametrize("name", ["results/one/report.html", "results/one/x.html", "mine.html", "folder.html"])
def test_a_page_replaces_no_file_but_such_a_page(folders, run_cli, name):
    folders("one", {})
    Path("results/one/study.json").write_text("{}")
    for path in ("results/one/report.html", "mine.html"):
        Path(path).write_text("mine")
    Path("folder.html").mkdir()
    refused(run_cli("compare", "results/one", "--out", name), name)
    assert Path("mine.html").read_text() == Path("results/one/report.html").read_text() == "mine"
    Path("results/one/study.json").unlink()
    for _ in range(2):
        assert run_cli("compare", "results/one", "--out", "page.html")[0] == 0


def test_what_cannot_be_compared_is_refused(folders, run_cli):
    folders("one", {}, images="some")
    refused(run_cli("compare", "results/one", "results/one/", "--out", "page.html"), "results/one")
    refused(run_cli("compare", "results/one", "results/two", "--out", "study.yaml"), "study.yaml", ".html")
    refused(run_cli("compare", "results/one", "results/none"), "results/none", "metrics.csv")
    Path("results/old").mkdir()
    Path("results/old/metrics.csv").write_text("study,value\na,1\n")
    refused(run_cli("compare", "results/one", "results/old"), "results/old/metrics.csv")
    Path("results/old/metrics.csv").write_text(Path("results/one/metrics.csv").read_text().splitlines(True)[0])
    refused(run_cli("compare", "results/one", "results/old"), "results/old/metrics.csv", "no rows")
    refused(run_cli("compare", "one"), "one is not there", "results/one")
    refused(run_cli("compare", "results/one/metrics.csv"), "results/one/metrics.csv is a file")
    os.renames("results", "first")
    folders("two", {}, images="others")
    refused(run_cli("compare", "first/one", "results/two"), "first/one", "results/two", "digits")
    assert not Path("page.html").exists()
