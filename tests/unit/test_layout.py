"""The layout: where everything is, for concrete coordinates and for Snakemake's patterns alike."""

from pathlib import Path

from dpdm import layout
from dpdm.layout import ANCHOR, RUN, SET, Layout


def test_a_pattern_filled_in_is_the_path_of_the_run():
    paths = Layout("results", "tiny")
    place = {"dataset": "digits", "method": "dpdm", "epsilon": "0.2", "seed": "1", "sampler": "fine", "anchor": "real"}
    for pattern, path in (
        (paths.run(*RUN, "model.pt"), paths.run("digits", "dpdm", "0.2", "1", "model.pt")),
        (paths.set(*SET, "synthetic.npz"), paths.set("digits", "dpdm", "0.2", "1", "fine", "synthetic.npz")),
        (paths.anchor(*ANCHOR), paths.anchor("digits", "real", "1")),
        (paths.audit("{dataset}", "{method}"), paths.audit("digits", "dpdm")),
    ):
        assert "{" in pattern
        assert pattern.format(**place) == path


def test_the_scheme_on_disk_is_the_one_of_kept_results():
    paths = Layout("r", "s")
    assert paths.study == "r/s/study.json"
    assert paths.data("mnist", "train.npz") == "r/data/mnist/train.npz"
    assert paths.set("mnist", "dpdm", "inf", "0", "fid", "fidelity.json") == (
        "r/s/runs/mnist/dpdm/epsinf/seed0/fid/fidelity.json"
    )
    assert paths.anchor("mnist", "label_only", "0", "utility.json") == "r/s/anchors/mnist/label_only/seed0/utility.json"
    assert paths.audit("mnist", "dpdm") == "r/s/audits/mnist/dpdm.json"
    assert paths.attack("mnist", "dpdm") == "r/s/attacks/mnist/dpdm.json"
    assert paths.table("results", ".csv") == "r/s/tables/results.csv"
    assert paths.figure("mnist_curves", ".svg") == "r/s/figures/mnist_curves.svg"
    assert paths.benchmark("train", "mnist", "dpdm") == "r/s/benchmarks/train/mnist-dpdm.tsv"


def test_an_anchor_is_judged_by_real_images_or_by_noise():
    paths = Layout("r", "s")
    assert paths.anchor_images("mnist", "real") == paths.data("mnist", "train.npz")
    assert paths.anchor_images("mnist", "label_only") == paths.label_only("mnist") == "r/s/anchors/mnist/label_only.npz"


def test_a_results_folder_that_was_moved_has_its_own_layout(tmp_path, monkeypatch):
    assert Layout.of("results/tiny").report == "results/tiny/report.html"
    assert Layout.of(tmp_path / "moved").data("digits") == f"{tmp_path}/data/digits"
    (tmp_path / "moved").mkdir()
    monkeypatch.chdir(tmp_path / "moved")
    assert Layout.of(".").root == f"{tmp_path}/moved"


def test_kept_results_share_the_data_of_the_studies_and_a_link_is_what_it_points_to(tmp_path):
    kept = Layout.of("results/tiny/kept")
    assert kept.report == "results/tiny/kept/report.html"
    assert kept.data("digits") == "results/data/digits"
    assert kept.by_hand("x") == "results/by_hand/x"
    (tmp_path / "tiny" / "kept" / "tables").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "tiny" / "kept")
    for name in ("link", "tiny/kept/tables/.."):
        assert Layout.of(tmp_path / name).root == f"{tmp_path}/tiny/kept"


def test_attacks_are_collected_only_where_they_are_wanted():
    assert [Path(f).name for f in Layout("r", "s").result_folders(False)] == ["runs", "anchors", "audits"]
    assert "r/s/attacks" in Layout("r", "s").result_folders(True)


def test_what_is_tracked_stands_beside_the_snakefile():
    for path in (layout.PUBLISHED, layout.PRIVACY_STATUS, layout.SNAKEFILE):
        assert Path(path).is_file()
