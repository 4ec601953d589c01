"""The report page: self-contained, deterministic, and saying what the data say."""

import base64
import math
import re
import shutil
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pytest
from measured import measured
from refusals import holds, refuses

from dpdm import artifacts
from dpdm.config import parse_study
from dpdm.errors import UserError
from dpdm.layout import TABLE_KINDS, Layout
from dpdm.report import registry
from dpdm.report.collect import AUDITS, BENCHMARKS, JOB_KEYS, METRICS, add_jobs, clock_seconds, write_csv
from dpdm.report.html import environment_facts, render_report
from dpdm.report.published import read_published
from dpdm.report.registry import Material
from dpdm.report.tables import Table
from dpdm.study import study_json

PUBLISHED = [Path(__file__).parents[2] / "results" / "published" / n for n in ("published.csv", "privacy_status.csv")]
ENVIRONMENT = {"python": "3.11", "commit": "abc"}
COMMAND = "snakemake --cores 2 --configfile config/tiny.yaml"


def make_study(**changes):
    study = {
        "study": "tiny",
        "datasets": {"digits": {"source": "digits", "delta": 1e-4}},
        "epsilons": [1, "inf"],
        "seeds": [0],
        "methods": {"dpgan": {"impl": "a:B"}, "mean": {"impl": "a:C"}},
        "evaluation": {"synthetic_images": 2000, "classifiers": ["cnn"]},
    }
    return parse_study({**study, **changes}, "test")


def make_frames(study):
    text = {"version": "0.1.0", "commit": "c0ffee", "code": "1111"}
    metric = {name: kind() for name, kind in METRICS.items()} | text
    audit = {name: kind() for name, kind in AUDITS.items()} | text
    metrics, audits = [], []
    places = [(r.method, r.coordinates().model_dump(mode="json")["epsilon"], "default") for r in study.runs()]
    for i, (method, epsilon, sampler) in enumerate([*places, ("real", "", ""), ("label_only", "", "")]):
        epsilon = str(epsilon).removesuffix(".0")
        row = {**metric, "dataset": "digits", "method": method, "epsilon": epsilon, "sampler": sampler}
        metrics.append({**row, **measured("fd", "train"), "value": 10.0 + i})
        metrics.append({**row, **measured("acc_cnn"), "value": 50.0 + i})
        if epsilon:
            target = float(epsilon)
            audits.append({
                **audit, "dataset": "digits", "method": method, "epsilon": epsilon, "n": 1437, "delta": 3.5e-4,
                "target_epsilon": target, "epsilon_rdp": target, "epsilon_prv": target,
                "epsilon_pld": target, "noise": "repeatable", "passed": True, "recipe_checked": True,
                "mechanism": "gaussian", "steps": 1, "sample_rate": math.nan,
            })  # fmt: skip
    jobs = [("train", "digits", "dpgan", 90.0, 512.0, 5099.0), ("prepare", "", "", 2.0, 9.0, 5002.0)]
    return pd.DataFrame(metrics), pd.DataFrame(audits), pd.DataFrame(jobs, columns=list(BENCHMARKS))


def png(content):
    """What begins and ends as a PNG."""
    return b"\x89PNG\r\n\x1a\n" + str(content).encode() + b"IEND\xaeB`\x82"


@pytest.fixture
def pictures(tmp_path):
    artifacts.write_text(tmp_path / "curve.svg", '<svg xmlns="http://www.w3.org/2000/svg"/>')
    artifacts.write_bytes(tmp_path / "grid.png", png("bytes"))
    return {"digits_curves": tmp_path / "curve.svg", "digits_samples": tmp_path / "grid.png"}


def render(
    study, metrics, audits, jobs, pictures=None, command=COMMAND, environment=ENVIRONMENT, layout=None, **options
):
    """The page of a study; without a layout all its runs are missing."""
    layout, published = layout or Layout("nowhere", study.study), options.pop("published", None)
    material = Material(study, layout, metrics, audits, published=published)
    times = add_jobs([jobs.assign(machine="")], JOB_KEYS), clock_seconds(jobs)
    return render_report(material, *times, pictures or {}, command, environment, **options)


@pytest.fixture
def page(pictures):
    study = make_study()
    return render(study, *make_frames(study), pictures)


class Tags(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    VOID = frozenset(("meta", "img", "br", "link"))

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize(("fixture", "pictures_shown"), [("page", 2), ("full_page", 2)])
def test_nothing_is_fetched(fixture, pictures_shown, request):
    page = request.getfixturevalue(fixture)
    tags = Tags(page).seen
    for tag, attributes in tags:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")) or tag == "a"
    assert "link" not in {tag for tag, _ in tags}
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", page)
    kinds = [a["src"].partition(";")[0] for tag, a in tags if tag == "img"]
    assert kinds[:2] == ["data:image/svg+xml", "data:image/png"]
    assert len(kinds) == pictures_shown


def test_a_method_leads_to_its_paper_and_nothing_else_leaves_the_page(layout):
    study = make_study()
    described = {"a:B": {"Paper": "Some et al. 2022, arXiv 2210.09929, algorithm 1"}, "a:C": {"Paper": "none"}}
    page = render(study, *make_frames(study), layout=layout, described=described)
    outside = [a["href"] for tag, a in Tags(page).seen if tag == "a" and urlsplit(a["href"]).netloc]
    assert outside == ["https://arxiv.org/abs/2210.09929"]


def test_filters_are_offered_where_there_is_a_choice_and_rows_say_what_they_are(full_page):
    choices = [a for tag, a in Tags(full_page).seen if tag in ("select", "option")]
    assert [choice.get("name", choice.get("value")) for choice in choices] == [
        "epsilon", "", "1", "inf", "method", "", "dpgan", "mean",
    ]  # fmt: skip
    rows = [(a["data-method"], a["data-epsilon"]) for tag, a in Tags(full_page).seen if tag == "tr" and a]
    series = [(method, epsilon) for epsilon in ("1", "inf") for method in ("dpgan", "mean")]
    by_method = [(method, epsilon) for method in ("dpgan", "mean") for epsilon in ("1", "inf")]
    assert rows == [("", ""), *series, ("", ""), *by_method]  # results with their anchors, then audits


def test_page_is_well_formed_with_unique_anchors(page):
    tags = Tags(page)
    assert tags.open == []
    ids = [a["id"] for _, a in tags.seen if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for tag, a in tags.seen if tag == "a" and a["href"][0] == "#"} <= set(ids)
    assert all(a.get("alt") for tag, a in tags.seen if tag == "img")


def test_page_says_what_was_run(page):
    text = Tags(page).text
    assert "2 methods (dpgan and mean) on 1 dataset (digits) at ε = 1 and ∞, each with 1 seed (0): 4 tr" in text
    assert "2,000 synthetic images" in text
    assert "RDP accountant, δ = 0.00035 on digits (n = 1,437)" in text
    assert "4 of 4 training runs audited" in headline(page)
    assert "No result of the grid is missing." in text
    assert "real images" in text  # the made-up FDs are below theirs
    assert "label_only (floor)" in text
    assert "none with an FID of Inception features" in text
    assert COMMAND in text
    assert "commit c0ffee" in text
    assert "Fewer than 3 seeds (1)" in text


def test_a_classifier_is_explained_and_claims_no_images(pictures, page):
    methods = {"dpgan": {"impl": "a:B"}, "net": {"impl": "a:C", "kind": "classifier"}}
    study = make_study(methods=methods)
    metrics, audits, jobs = make_frames(study)
    metrics = metrics[(metrics["method"] != "net") | (metrics["metric"] == "acc_cnn")]
    metrics.loc[metrics["method"] == "net", ["protocol", "sampler"]] = ["direct", ""]
    text = Tags(render(study, metrics, audits, jobs, pictures)).text
    assert "(net) makes no images" in text
    assert "net (classifier)" in text
    assert "No result of the grid is missing." in text
    assert "Each generator was judged on 2,000 synthetic images a run" in text
    assert "(classifier)" not in page  # where there is none


def headline(page):
    """Value and label of each headline fact, in the order they are shown."""
    return [f"{value} {label}" for label, value in re.findall(r"<dt>(.*?)</dt><dd.*?>(.*?)</dd>", page)]


def test_the_time_of_all_jobs_is_summed(page):
    assert "92 s in 2 jobs, summed" in headline(page)


def quoted(source, **changes):
    """A study on `source`, called data, and its page with the shipped published numbers."""
    study = make_study(datasets={"data": {"source": source, "delta": 1e-5}}, **changes)
    frames = [frame.replace({"dataset": {"digits": "data"}}) for frame in make_frames(study)]
    return render(study, *frames, published=read_published(*PUBLISHED))


def part_of(page, start, end):
    """The page from one heading's id to another's."""
    return page[page.index(f'<h2 id="{start}">') : page.index(f'<h2 id="{end}">')]


def test_published_numbers_stand_by_themselves_with_their_privacy_status():
    page = quoted("mnist")
    section = part_of(page, "published", "privacy")
    text = Tags(section).text
    assert "mnist (here: data)" in text
    assert "Do not rank by FID" in text
    assert text.index("Do not rank by FID") < text.index("Published FID ↓")
    assert "5.01" in text
    assert "not DP as released" in text
    assert "least epsilon that we can prove is 347" in text
    assert "label_only" not in text
    assert "PEARL" not in part_of(page, "results", "published")
    assert not re.search(r"<strong>\d", section)
    assert text.index("Best published without public data") < text.index("Published FID ↓")
    assert "97.26 (WRN)" in text
    assert Tags(page).open == []


def test_the_papers_tables_that_a_study_names_are_in_its_report():
    page = quoted("mnist", tables={"table_1": [{"method": "dpgan", "published": "PEARL"}], "table_3": []})
    section = part_of(page, "paper", "methods")
    assert re.findall("<h3>(.*?)</h3>", section) == ["Table 1: main results", "Table 3: noise multiplicity K"]
    assert re.search(r"<td>PEARL</td>.*<td>dpgan</td>.*50\.0 \(1\) †", section)
    assert "† dpgan: scale not stated" in section
    assert 'href="#paper"' in page
    assert Tags(page).open == []
    assert 'id="paper"' not in quoted("mnist")
    assert 'id="paper"' not in quoted("digits", tables={"table_1": []})  # which would be "not run" from top to bottom


def test_a_dataset_without_published_numbers_has_no_such_section():
    assert 'id="published"' in quoted("mnist")
    assert "#published" not in quoted("digits")


def test_two_datasets_of_one_source_share_a_table():
    spec = {"source": "mnist", "delta": 1e-5}
    study = make_study(datasets={"a": spec, "b": {**spec, "delta": 1e-6}})
    frames = [frame.iloc[:0] for frame in make_frames(study)]
    page = render(study, *frames, published=read_published(*PUBLISHED))
    assert page.count('<div class="box numbers"') == 1
    assert "mnist (here: a, b)" in page


def test_the_verb_reads_the_published_numbers_and_refuses_broken_ones(run_cli, tmp_path, monkeypatch, pictures):
    study, layout = make_study(), Layout(str(tmp_path), "tiny")
    metrics, audits, _ = make_frames(study)
    artifacts.write_text(layout.study, study_json(study))
    write_csv(layout.metrics, metrics)
    write_csv(layout.audits, audits)
    for name in registry.figures(study):
        artifacts.write_bytes(layout.figure(name, ".svg"), pictures["digits_curves"].read_bytes())
    assert run_cli("report", layout.root, "--command", COMMAND) == (0, "", "")
    page = Path(layout.report).read_text()
    assert COMMAND in page
    broken = tmp_path / "p.csv"
    broken.write_text(PUBLISHED[0].read_text().replace("epsilon", "eps", 1))
    monkeypatch.setattr("dpdm.layout.PUBLISHED", str(broken))
    Path(layout.report).unlink()
    code, _, said = run_cli("report", layout.root)
    assert code == 2
    assert [part for part in (str(broken), " eps,", " epsilon,") if part not in said] == []
    assert not Path(layout.report).exists()


def test_a_page_of_a_part_says_so(pictures):
    study = make_study(only="epsilon=1")
    metrics, audits, benchmarks = make_frames(study)
    shown = render(study, metrics, audits, benchmarks, pictures)
    assert holds(shown, "part of the study", "only epsilon=1", lines=None)
    whole = render(make_study(), *make_frames(make_study()), pictures)
    assert "part of the study" not in whole


def test_a_page_of_a_part_says_nothing_of_what_was_not_run():
    mnist = {"mnist": {"source": "mnist", "delta": 1e-5}, "fashion_mnist": {"source": "fashion_mnist", "delta": 1e-5}}
    part = {"only": "dataset=mnist epsilon=1", "without": "method=mean seed=0,1"}
    study = make_study(datasets=mnist, epsilons=[1, 10], seeds=[0, 1, 2], **part)
    metrics, audits, jobs = make_frames(study)
    frames = (frame.assign(dataset="mnist") for frame in (metrics, audits))
    text = render(study, *frames, jobs, published=read_published(*PUBLISHED))
    assert "best published accuracy" in text
    assert "mnist, ε = 1: best published" in text
    assert not re.search(r"mnist, ε = 10: the best|fashion_mnist(?! epsilon)", text)
    assert "each with 1 to 3 seeds (0, 1 and 2): 4 training runs" in text


def test_without_the_file_there_is_no_section(page):
    assert 'id="published"' not in page
    assert 'href="#published"' not in page


def test_methods_say_how_they_were_tuned(pictures):
    tuned = {"impl": "a:B", "tuning": {"settings": 5, "data": "MNIST shrunk to 8x8"}}
    study = make_study(methods={"dpgan": tuned, "mean": {"impl": "a:C"}})
    page = render(study, *make_frames(study), pictures)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", part_of(page, "methods", "privacy"))
    assert cells == ["dpgan", "5", "MNIST shrunk to 8x8", "a:B", "mean", "not stated", "not stated", "a:C"]


@pytest.fixture
def layout(tmp_path):
    return Layout(str(tmp_path), "study")


@pytest.fixture
def full_page(pictures, layout):
    """Every section and figure, and a ledger for every run."""
    noted = {"impl": "a:B", "params": {"note": "<b>"}}
    study = make_study(methods={"dpgan": noted, "mean": noted})
    for run in study.runs():
        artifacts.write_json(layout.run(*run.place, "ledger.json"), {})
        for name in ("synthetic.npz", "sample.log"):
            artifacts.write_text(f"{layout.run(*run.place)}/default/{name}", "")
    for c in study.anchor_coordinates():
        artifacts.write_text(layout.anchor(c.dataset, c.method, str(c.seed), "score.log"), "")
    return render(study, *make_frames(study), pictures, layout=layout)


def test_what_is_registered_is_on_the_page(pictures, monkeypatch):
    made = types.ModuleType("made")
    cells = pd.DataFrame({"Method": ["dpgan"], "Wins": ["7"]})
    made.table = lambda material: Table(cells.assign(n=len(material.metrics)), cells)
    monkeypatch.setitem(sys.modules, "made", made)
    monkeypatch.setitem(registry.TABLES, "more", registry.Item("made:table", "What it counts."))
    monkeypatch.setitem(registry.FIGURES, "extra", registry.Item("made:figure", "What it draws.", per_dataset=True))
    study = make_study()
    page = render(study, *make_frames(study), pictures | {"digits_extra": pictures["digits_curves"]})
    section = part_of(page, "results", "methods")
    assert section.index("What it draws.") < section.index("Over the whole study") < section.index("What it counts.")
    assert "<td>7</td>" in section


def test_every_row_of_results_leads_to_its_runs(full_page):
    rows = re.findall(r'<td><a href="#(runs-[\w-]+)">(.*?)</a></td>', part_of(full_page, "results", "methods"))
    assert rows == [
        ("runs-digits-real", "real images"), ("runs-digits-dpgan-1", "dpgan"), ("runs-digits-mean-1", "mean"),
        ("runs-digits-dpgan-inf", "dpgan"), ("runs-digits-mean-inf", "mean"),
        ("runs-digits-label_only", "label_only (floor)"),
    ]  # fmt: skip
    section = part_of(full_page, "runs", "cost")
    for anchor, _ in rows:
        assert section.count(f'id="{anchor}"') == 1
    tags = Tags(full_page)
    assert tags.open == []
    ids = [a["id"] for _, a in tags.seen if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for tag, a in tags.seen if tag == "a" and a["href"].startswith("#")} <= set(ids)
    assert "missing" not in Tags(section).text
    assert section.count("accounting: ✓ passed, spent ε") == 2
    assert section.count("accounting: no noise: no guarantee") == 2


def test_our_numbers_beside_the_papers_lead_to_their_runs(layout):
    mapped = [{"method": "dpgan", "published": "PEARL"}]
    study = make_study(datasets={"data": {"source": "mnist", "delta": 1e-5}}, tables={"table_1": mapped})
    frames = [frame.replace({"dataset": {"digits": "data"}}) for frame in make_frames(study)]
    options = {"published": read_published(*PUBLISHED), "layout": layout}
    section = part_of(render(study, *frames, **options), "paper", "methods")
    assert section.count('<a href="#runs-data-dpgan-1">50.0 (1) †</a>') == 1
    assert "A number of ours leads to its runs." in section


@pytest.mark.parametrize("metrics", [["fd"], ["fid"], ["fid", "fd"]])
def test_each_distance_of_the_page_is_explained_and_no_other(metrics):
    study = make_study()
    frame, *rest = make_frames(study)
    extractors = {"fd": "small_cnn", "fid": "inception"}
    renamed = [frame.replace({"metric": {"fd": m}, "extractor": {"small_cnn": extractors[m]}}) for m in metrics]
    text = Tags(render(study, pd.concat(renamed), *rest)).text
    assert ("FID is the Fréchet distance of Inception's features" in text) == ("fid" in metrics)
    assert ("FD is a Fréchet distance in the features of " in text) == ("fd" in metrics)
    assert ("KID, precision and recall that name such a network use" in text) == (len(metrics) == 2)


def test_the_unit_of_kid_is_said_where_it_was_measured():
    study = make_study()
    metrics, *rest = make_frames(study)
    assert "multiplied by 1,000" not in Tags(render(study, metrics, *rest)).text
    with_kid = pd.concat([metrics, metrics[metrics["metric"] == "fd"].assign(metric="kid")])
    assert "not multiplied by 1,000" in Tags(render(study, with_kid, *rest)).text


def test_the_spread_over_the_extractors_is_said_where_it_was_measured():
    study = make_study()
    metrics, audits, jobs = make_frames(study)
    metrics["spread"] = math.nan
    assert "standard deviation is up to" not in render(study, metrics, audits, jobs)
    fd = metrics.index[metrics["metric"] == "fd"]
    metrics.loc[fd[:2], "spread"] = metrics.loc[fd[:2], "value"] * [0.03, 0.17]
    assert "standard deviation is up to 17 % of it" in render(study, metrics, audits, jobs)


def test_links_to_files_are_relative_and_lead_somewhere(full_page, layout):
    links = [a["href"] for tag, a in Tags(full_page).seen if tag == "a" and not a["href"].startswith("#")]
    tables = [f"tables/{name}{kind}" for name in ("results", "audit") for kind in TABLE_KINDS]
    assert links[: len(tables)] == tables
    runs = links[len(tables) :]
    assert len(runs) == 4 * 2 + 2
    for link in runs:
        assert not link.startswith("/")
        assert (Path(layout.root) / link).exists()


def test_the_nearest_images_are_shown_at_the_largest_epsilon_and_said_to_be_no_release(layout):
    study = make_study(epsilons=[1, 10])
    for run in study.runs():
        for kind in ("png", "txt"):
            artifacts.write_bytes(layout.set(*run.place, "default", f"nearest.{kind}"), png(run.epsilon))
    page = render(study, *make_frames(study), layout=layout)
    section = part_of(page, "results", "methods")
    shown = [
        (a["alt"].split()[0], base64.b64decode(a["src"].partition(",")[2]))
        for tag, a in Tags(section).seen
        if tag == "img"
    ]
    assert shown == [("dpgan,", png(10.0)), ("mean,", png(10.0))]
    assert "no release" in Tags(section).text
    assert "copies" not in part_of(render(study, *make_frames(study)), "results", "methods")


def test_distances_but_the_first_are_folded(pictures):
    study = make_study()
    metrics, *rest = make_frames(study)
    more = metrics[metrics["metric"] == "fd"].assign(metric="kid")
    section = part_of(render(study, pd.concat([metrics, more]), *rest), "results", "methods")
    first, second = re.findall("<details><summary>Other measures|<table>", section)[:2], section.count("<table>")
    assert (first, second) == (["<table>", "<details><summary>Other measures"], 2)
    assert section.index("FD") < section.index("Other measures") < section.index(">KID")


def test_runs_are_folded_per_method_and_recipes_are_escaped(full_page):
    section = part_of(full_page, "runs", "cost")
    names = re.findall(r'<details class="runs"[^>]*><summary>(\w+): (\d) runs?', section)
    assert names == [("dpgan", "2"), ("mean", "2"), ("real", "1"), ("label_only", "1")]
    assert "&lt;b&gt;" in section
    assert "<b>" not in section
    assert section.count("python -m dpdm train --spec") == 1


def test_runs_that_are_missing_say_so(pictures, layout):
    study = make_study()
    page = render(study, *make_frames(study), pictures, layout=layout)
    text = Tags(part_of(page, "runs", "cost")).text
    assert "dpgan: 2 runs 2 missing" in text
    assert "seed 0: missing" in text


def test_figures_stand_in_their_sections_with_words_for_who_cannot_see_them(full_page):
    def images(start, end):
        return [a["alt"] for tag, a in Tags(part_of(full_page, start, end)).seen if tag == "img"]

    assert [alt.split()[0] for alt in images("results", "methods")] == ["The"]
    assert full_page.count('alt="Means') == 1


def test_holes_are_named(pictures):
    study = make_study()
    metrics, audits, jobs = make_frames(study)
    fidelity = metrics[metrics["metric"] != "acc_cnn"]
    text = Tags(render(study, fidelity, audits[:3], jobs, pictures)).text
    assert "6 results are missing" in text
    assert "digits, mean, epsilon inf, seed 0, sampler default: no utility, no audit" in text
    few = Tags(render(study, metrics, audits[:3], jobs, pictures)).text
    assert "Missing: digits, mean, epsilon inf, seed 0, sampler default: no audit." in few


def test_failed_audit_and_mixed_code_cannot_be_overlooked(pictures):
    study = make_study()
    metrics, audits, jobs = make_frames(study)
    audits.loc[0, "passed"] = False
    metrics.loc[0, "code"] = "2222"
    page = render(study, metrics, audits, jobs, pictures)
    assert "1 of the runs failed: their numbers must not be used." in page
    assert "✗ FAILED" in page
    assert ("private runs within their target", "1 of 2") in facts_of(page)
    assert "They mix versions of the code." in page


def facts_of(page):
    return re.findall(r"<dt>(.*?)</dt><dd[^>]*>(.*?)</dd>", page)


def test_runs_without_noise_are_never_said_to_have_passed(page):
    assert ("private runs within their target", "2 of 2") in facts_of(page)
    endless = re.findall(r"<tr[^>]*>(?:(?!</tr>).)*<td[^>]*>∞</td>(?:(?!</tr>).)*Gaussian(?:(?!</tr>).)*</tr>", page)
    assert len(endless) == 2
    assert all("no guarantee" in row and "passed" not in row for row in endless)


def test_runs_without_noise_are_counted_apart(page):
    assert ("runs without noise, which have no guarantee", "2") in facts_of(page)
    study = make_study(epsilons=[1])
    assert not any("without noise" in label for label, _ in facts_of(render(study, *make_frames(study))))


def test_verdict_and_first_picture_precede_facts_and_results(page):
    places = [page.index(text) for text in ('aria-label="Verdict"', "<img", '<dl class="facts">', 'id="results"')]
    assert places == sorted(places)


def test_a_table_says_first_who_is_best_where_seeds_suffice(page):
    assert "Who is best" not in page  # two seeds
    two = {name: {"impl": "a:B"} for name in ("dpgan", "mean")}
    study = make_study(methods=two, seeds=[0, 1, 2])
    page = render(study, *make_frames(study))
    verdict = page[page.index('aria-label="Verdict"') : page.index('<dl class="facts">')]
    assert "ε = 1</th>" in verdict
    assert verdict.index("<td>FD (small CNN) ↓</td>") < verdict.index("Caution")


def test_methods_say_what_they_are_and_release():
    study = make_study()
    described = {"a:B": {"What it is": "a GAN", "Releases": "its noised gradients"}}
    page = render(study, *make_frames(study), described=described)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", part_of(page, "methods", "privacy"))
    assert cells[:3] == ["dpgan", "a GAN", "its noised gradients"]


def attacked(audits, **changes):
    bound = {"attack": "one_run", "attacked_epsilon": 0.42, "attack_confidence": 0.95, "attack_canaries": 1000}
    for name, value in (bound | {"attack_runs": 1} | changes).items():
        audits.loc[audits["epsilon"] == "1", name] = value
    return audits


def test_attacks_stand_beside_the_accounting_with_method_and_confidence(pictures):
    study = make_study()
    metrics, audits, jobs = make_frames(study)
    page = render(study, metrics, attacked(audits), jobs, pictures)
    assert page.count("≥ 0.42") == 2
    assert page.count("one-run auditing, 95% confidence, 1,000 canaries in 1 run") == 2
    assert ("claims that no attack refuted", "2 of 2") in facts_of(page)
    assert re.search("cannot see.*mix", page)
    assert "ABOVE TARGET" not in page


def test_an_attack_above_its_target_cannot_be_overlooked(pictures):
    study = make_study()
    metrics, audits, jobs = make_frames(study)
    audits = attacked(audits, attacked_epsilon=3.0, attack_exceeded=True)
    page = render(study, metrics, audits, jobs, pictures)
    assert page.count("≥ 3.00 ✗ ABOVE TARGET") == 2
    assert re.search('class="bad">2 attacks reached more than the target', page)
    assert ("claims that no attack refuted", "0 of 2") in facts_of(page)


def test_a_report_without_attacks_does_not_speak_of_them(page):
    assert "<em>Attacks</em>" not in page
    assert not any("attack" in label for label, _ in facts_of(page))


def test_a_study_without_any_result_still_renders():
    frames = [pd.DataFrame(columns=list(columns)) for columns in (METRICS, AUDITS, BENCHMARKS)]
    frames[1][["passed", "attack_exceeded"]] = frames[1][["passed", "attack_exceeded"]].astype(bool)
    text = Tags(render(make_study(), *frames)).text
    assert "No audit was found." in text
    assert "0 of 4" in text


def test_values_are_escaped(pictures):
    study = make_study()
    page = render(study, *make_frames(study), pictures, "a <script>x</script>", {"x": "<i>"})
    assert "<script>x" not in page
    assert "<i>" not in page


def test_equal_inputs_give_equal_text(page, pictures):
    study = make_study()
    assert render(study, *make_frames(study), pictures) == page


def test_missing_figure_is_named(pictures, tmp_path):
    study = make_study()
    with pytest.raises(UserError, match=r"absent\.svg"):
        render(study, *make_frames(study), {"digits_curves": tmp_path / "absent.svg"})


@pytest.mark.parametrize(
    "content", [b"", b'<svg xmlns="http://www.w3.org/2000/svg"><g>', b"<html/>", b"<svg/>", b"\xff\x00\x80", png("")]
)
def test_a_figure_that_is_not_whole_is_named(pictures, content):
    study = make_study()
    pictures["digits_curves"].write_bytes(content)
    with refuses("curve.svg", "SVG", "dpdm figures nowhere/"):
        render(study, *make_frames(study), pictures)


@pytest.mark.parametrize("content", [b"", png("")[:-4], b"<svg/>"])
def test_a_picture_of_images_that_is_not_whole_is_named(layout, content):
    study = make_study()
    run = max(study.runs(), key=lambda run: run.epsilon)
    artifacts.write_bytes(path := layout.set(*run.place, "default", "nearest.png"), content)
    with refuses(path, "PNG", f"dpdm score {layout.root} {run.name}/default"):
        render(study, *make_frames(study), layout=layout)


def test_environment_names_versions():
    facts = environment_facts()
    assert {"python", "platform", "torch", "opacus", "snakemake", "numpy", "commit", "code digest"} <= set(facts)


def test_report_never_imports_torch():
    code = (
        "import sys, dpdm.report.html, dpdm.report.figures; from dpdm.report.html import environment_facts as f; f();"
        "print([m for m in ('torch', 'opacus', 'sklearn', 'dpdm.data') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["repeatable"] * 2, "All private runs"),
        (["repeatable", "secret"], "1 of the private runs"),
        (["secret"] * 2, None),
    ],
)
def test_the_page_says_against_whom_repeatable_noise_is_private(kinds, said, tmp_path):
    study = make_study(epsilons=[1])
    metrics, audits, benchmarks = make_frames(study)
    audits["noise"] = kinds
    page = render(study, metrics, audits, benchmarks)
    assert ("do not know the seed" in page) == (said is not None)
    assert said is None or said in page


def test_accuracies_are_the_first_numbers_and_n_is_said_once(page):
    section = part_of(page, "results", "methods")
    headers = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', section)
    assert [header.split()[0] for header in headers] == ["ε", "Method", "CNN", "FD"]
    assert "(1)" not in section
    assert "n = 1 seed" in Tags(section).text


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# What a reader does; the page as it is after that comes back.
ACTIONS = """<script>
function choose(name, value) {
  form.querySelector(`[name=${name}]`).value = value;
  form.dispatchEvent(new Event("input"));
}
function click(text) {
  Array.from(document.querySelectorAll(".results th button")).find(one => one.textContent.startsWith(text)).click();
}
function shown() {
  return Array.from(document.querySelectorAll(".results tbody tr")).filter(row => !row.hidden).map(
    row => row.cells[0].textContent + " " + row.cells[1].textContent.split(" ")[0]).join(";");
}
var said = [shown()];
click("CNN"); said.push(shown()); click("CNN"); said.push(shown()); click("CNN"); said.push(shown());
click("FD"); said.push(shown()); click("FD"); said.push(shown());
choose("method", "mean"); said.push(shown()); choose("epsilon", "1"); said.push(shown());
document.title = said.join("|");
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs a browser")
def test_a_browser_filters_and_sorts_within_each_epsilon(full_page, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(full_page.replace("</body>", ACTIONS))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    command = [CHROMIUM, *options, "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    real, floor = "– real", "– label_only"  # noqa: RUF001
    rows = ["1 dpgan", "1 mean", "∞ dpgan", "∞ mean"]
    turned = [rows[1], rows[0], rows[3], rows[2]]  # the second of each has the higher accuracy, and distance
    assert re.search("<title>(.*?)</title>", dom)[1].split("|") == [
        ";".join([real, *some, floor])
        for some in (rows, turned, rows, rows, rows, turned, ["1 mean", "∞ mean"], ["1 mean"])
    ]  # fmt: skip
