"""Numbers quoted from papers: what is shipped, what is refused, and how they are shown."""

import csv
import importlib.util
import io
import subprocess
from pathlib import Path

import pytest

from baselines import dpcgan, gs_wgan
from dpdm.errors import UserError
from dpdm.report.published import PRIVACY_STATUS, best_table, privacy_table, published_table, read_published

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "results" / "published" / "published.csv"
SHIPPED_STATUS = ROOT / "results" / "published" / "privacy_status.csv"

NUMBER = {
    "source": "A et al., Table 1", "protocol": "paper", "table": "1", "dataset": "mnist", "resolution": "28",
    "method": "GAN", "variant": "", "epsilon": "10", "delta": "1e-5", "metric": "fid", "value": "61.30",
    "status": "first-hand",
}  # fmt: skip
STATUS = {"method": "GAN", "protocol": "paper", "privacy_status": "understated", "privacy_note": "Its sum is wrong.",
          "public_data": "no"}  # fmt: skip


@pytest.fixture(scope="module")
def shipped():
    return read_published(SHIPPED, SHIPPED_STATUS)


@pytest.fixture
def files(tmp_path):
    """Writes both files, each row given by what differs from the one above, and returns their paths."""

    def write(numbers=({},), statuses=({},)):
        for name, base, changes in (("p.csv", NUMBER, numbers), ("s.csv", STATUS, statuses)):
            text = io.StringIO(newline="")
            rows = [base | change for change in changes]
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            (tmp_path / name).write_text(text.getvalue())
        return tmp_path / "p.csv", tmp_path / "s.csv"

    return write


def refusal(paths) -> str:
    with pytest.raises(UserError) as error:
        read_published(*paths)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what is shipped ------------------------------------------------------------------------------------------


def test_every_shipped_number_has_a_source_and_a_privacy_status(shipped):
    assert len(shipped) == len(SHIPPED.read_text().splitlines()) - 1
    assert set(shipped["privacy_status"]) == set(PRIVACY_STATUS)
    assert all(shipped["source"])


@pytest.mark.parametrize(
    ("method", "source", "status", "part"),
    [
        ("DPDM", "Dockhorn", "sound", ""),
        ("PEARL", "Dockhorn", "sound", ""),
        ("DP-MEPF", "Dockhorn", "sound", "public data"),
        ("DP-CGAN", "Dockhorn", "understated", "prove is 65"),
        ("GS-WGAN", "Dockhorn", "understated", "347"),
        ("GS-WGAN", "DPImageBench", "understated", "32 times"),
        ("G-PATE", "Dockhorn", "data-dependent", ""),
        ("DataLens", "Dockhorn", "data-dependent", ""),
        ("DP-Kernel", "DPImageBench", "not DP as released", "private labels"),
        ("DPDM", "DPImageBench", "unknown", ""),
    ],
)
def test_the_status_is_that_of_the_method_as_its_source_ran_it(shipped, method, source, status, part):
    rows = shipped[(shipped["method"] == method) & shipped["source"].str.startswith(source)]
    assert set(rows["privacy_status"]) == {status}
    assert all(part in note for note in rows["privacy_note"])


def test_what_is_not_sound_says_why(shipped):
    assert all(shipped.loc[shipped["privacy_status"] != "sound", "privacy_note"])


def test_table_1_of_the_paper_is_quoted_as_it_stands(shipped):
    cells = published_table(shipped, "mnist").cells
    row = cells[(cells["ε"] == "10") & (cells["Method"] == "DPDM") & (cells["Variant"] == "FID")].iloc[0]
    assert row["Published FID ↓"] == "5.01"
    assert [row[f"{name} accuracy % ↑"] for name in ("LogReg", "MLP", "CNN")] == ["90.5", "94.6", "97.3"]
    assert row["Source"] == "Dockhorn et al., arXiv 2210.09929v1, Table 1"


def test_no_shipped_number_is_lost_in_its_tables(shipped):
    for dataset, rows in shipped.groupby("dataset"):
        data = published_table(shipped, dataset).data
        metrics = [name for name in data.columns if name in set(rows["metric"])]
        assert sorted(data[metrics].stack().dropna()) == sorted(rows["value"])


def test_git_keeps_the_shipped_files():
    for path in (SHIPPED, SHIPPED_STATUS):
        done = subprocess.run(["git", "check-ignore", "-q", str(path)], cwd=ROOT, check=False)
        if done.returncode == 128:
            pytest.skip("not a git checkout")
        assert done.returncode == 1, f"{path} is ignored by git"


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new"), [(0, "epsilon", "eps"), (0, "value", "method"), (1, "privacy_note", "note")]
)
def test_columns_must_be_exactly_those_known(files, file, old, new):
    paths = files()
    paths[file].write_text(paths[file].read_text().replace(old, new, 1))
    message = refusal(paths)
    assert message.startswith(f"{paths[file]}: ")
    assert all(name in message for name in (old, new))


@pytest.mark.parametrize(
    ("column", "text", "part"),
    [
        ("epsilon", "0", "0.2, 10"),
        ("epsilon", "10.0", "0.2, 10"),
        ("epsilon", "", "epsilon"),
        ("epsilon", "nan", "nan"),
        ("delta", "2", "between 0 and 1"),
        ("delta", "1/n", "1/n"),
        ("resolution", "28x28", "28x28"),
        ("resolution", "0", "0"),
        ("metric", "acc_svm", "acc_logreg"),
        ("metric", "FID", "FID"),
        ("value", "61,3", "61,3"),
        ("value", "-1", "-1"),
        ("value", "inf", "inf"),
        ("status", "third-hand", "secondary"),
        ("source", " ", "space"),
        ("variant", "a ", "a "),
    ],
)
def test_a_malformed_field_is_named_with_its_line(files, column, text, part):
    message = refusal(files([{"table": "2"}, {column: text}]))
    assert f"p.csv, line 3: {column}: " in message
    assert part in message


def test_an_accuracy_is_in_per_cent(files):
    message = refusal(files([{"metric": "acc_cnn", "value": "930"}]))
    assert all(part in message for part in ("line 2", "930", "per cent"))
    assert read_published(*files([{"value": "930"}]))["value"].tolist() == [930]


def test_a_number_that_is_there_twice(files):
    message = refusal(files([{}, {"value": "7"}]))
    assert "line 3" in message
    assert "line 2" in message


def test_a_method_without_privacy_status(files):
    message = refusal(files([{}, {"protocol": "port"}]))
    assert all(part in message for part in ("p.csv, line 3", "s.csv", "GAN of port", "sound, understated"))


def test_a_privacy_status_that_is_not_in_the_vocabulary(files):
    message = refusal(files(statuses=[{"privacy_status": "fine"}]))
    assert all(status in message for status in PRIVACY_STATUS)


@pytest.mark.parametrize(("change", "part"), [({}, "line 3: GAN of paper"), ({"method": "GAM"}, "GAM of paper")])
def test_a_status_is_given_once_and_for_a_method_that_is_there(files, change, part):
    assert part in refusal(files(statuses=[{}, change]))


def test_a_ragged_line_a_binary_file_and_a_missing_one(files, tmp_path):
    paths = files()
    whole = paths[0].read_text()
    for line in ("a,b", whole.splitlines()[1] + ",more"):
        paths[0].write_text(f"{whole}{line}\n")
        assert "p.csv, line 3: " in refusal(paths)
    paths[0].write_bytes(b"\xff\xfe")
    assert "UTF-8" in refusal(paths)
    assert "absent.csv" in refusal((tmp_path / "absent.csv", paths[1]))


# --- the tables -----------------------------------------------------------------------------------------------


def test_rows_are_grouped_by_epsilon_in_the_order_of_the_file(files):
    numbers = [{}, {"epsilon": "inf"}, {"epsilon": "0.2"}, {"metric": "acc_cnn", "value": "80"}, {"variant": "wide"}]
    table = published_table(read_published(*files(numbers)), "mnist")
    assert list(zip(table.cells["ε"], table.cells["Variant"], strict=True)) == [
        ("0.2", "–"), ("10", "–"), ("10", "wide"), ("∞", "–"),  # noqa: RUF001
    ]  # fmt: skip
    assert [len(body) for body in table.bodies()] == [1, 2, 1]
    assert table.bold == frozenset()


def test_values_are_shown_as_they_were_printed_and_columns_without_any_are_left_out(files):
    table = published_table(read_published(*files([{}, {"metric": "acc_cnn", "value": "79.0"}])), "mnist")
    assert table.cells.columns.tolist() == [
        "ε", "Method", "Protocol", "Variant", "Size", "Published FID ↓", "CNN accuracy % ↑", "Privacy status", "δ",
        "Status", "Source",
    ]  # fmt: skip
    assert table.cells.iloc[0].tolist() == [
        "10", "GAN", "paper", "–", "28", "61.30", "79.0", "understated", "1e-5", "first-hand", "A et al., Table 1",  # noqa: RUF001
    ]  # fmt: skip
    assert table.data.iloc[0][["dataset", "fid", "acc_cnn"]].tolist() == ["mnist", 61.3, 79.0]


def test_accuracies_of_other_kinds_stand_in_a_column_of_their_own(files):
    numbers = [
        {"metric": "acc_cnn (its own cnn)", "value": "94.4", "variant": "a"},
        {"metric": "acc_mean", "value": "75.3", "variant": "best of 3 classifiers by test accuracy"},
        {"metric": "fid", "value": "47.7"},
    ]
    cells = published_table(read_published(*files(numbers)), "mnist").cells
    assert cells["Measured otherwise"].tolist() == ["94.4 (own CNN)", "75.3 (best of 3)"]
    assert cells["Published FID ↓"].tolist() == ["–", "47.7"]  # noqa: RUF001
    assert "CNN accuracy % ↑" not in cells


def test_without_a_finite_epsilon_no_privacy_claim_is_judged(files):
    cells = published_table(read_published(*files([{"epsilon": "inf", "delta": ""}])), "mnist").cells
    assert cells.iloc[0][["Privacy status", "δ"]].tolist() == ["–", "–"]  # noqa: RUF001


def test_each_privacy_claim_has_one_row_with_its_reason(files):
    table = privacy_table(read_published(*files([{}, {"epsilon": "1"}, {"dataset": "celeba"}])))
    assert table.cells.to_numpy().tolist() == [["GAN", "paper", "understated", "Its sum is wrong."]]


def test_the_names_that_datasets_are_found_by_are_those_of_the_file(shipped):
    assert {"mnist", "fashion_mnist", "cifar_10", "celeba", "celeba (male_conditional)"} == set(shipped["dataset"])


def test_the_best_published_accuracy_is_per_protocol_and_without_public_data(files):
    numbers = [
        {"metric": "acc_cnn", "value": "80"}, {"metric": "acc_mlp", "value": "81.50"}, {"metric": "fid", "value": "2"},
        {"metric": "acc_cnn", "value": "99", "method": "Public"},
        {"metric": "acc_cnn", "value": "98", "method": "None"},
        {"metric": "acc_cnn", "value": "97", "method": "DP-SGD classifier"},
        {"metric": "acc_wrn", "value": "90", "protocol": "bench (other network)"},
        {"metric": "acc_cnn", "value": "95", "epsilon": "inf"},
    ]  # fmt: skip
    statuses = [
        {}, {"method": "Public", "public_data": "yes"}, {"method": "None", "privacy_status": "not DP as released"},
        {"method": "DP-SGD classifier"}, {"protocol": "bench (other network)"},
    ]  # fmt: skip
    cells = best_table(read_published(*files(numbers, statuses))).cells
    assert cells[["Protocol", "Method", "Best accuracy %"]].to_numpy().tolist() == [
        ["paper", "GAN", "81.50 (MLP)"], ["bench", "GAN", "90 (WRN)"]
    ]  # fmt: skip


def test_the_state_of_the_art_is_among_the_shipped_numbers(shipped):
    best = best_table(shipped).data
    one = best[(best["dataset"] == "mnist") & (best["epsilon"] == "1")].set_index("protocol")
    assert (one.loc["dpimagebench", "method"], one.loc["dpimagebench", "value"]) == ("FETA-Pro", 97.26)
    assert (one.loc["paper", "method"], one.loc["paper", "value"]) == ("DPDM", 95.3)


def test_what_is_said_to_be_proven_is_computed(shipped):
    """privacy_status.csv names a script; its numbers are the script's."""
    path = ROOT / "benchmarks" / "published_epsilons.py"
    spec = importlib.util.spec_from_file_location("published_epsilons", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, found, code in (("GS-WGAN", module.gs_wgan(), gs_wgan), ("DP-CGAN", module.dpcgan(), dpcgan)):
        (note,) = set(shipped.loc[(shipped["method"] == name) & (shipped["protocol"] == "paper"), "privacy_note"])
        assert path.name in note
        assert min(found, key=found.get) == "pld"
        assert f"prove is {found['pld']:.0f} " in note
        assert f"prove is {found['pld']:.0f} (PLD; {found['rdp']:.0f} by RDP)" in " ".join(code.__doc__.split())
    assert not shipped["privacy_note"].str.contains("the true epsilon").any()
