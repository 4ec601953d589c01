"""The documents against the code: keys, commands, links and numbers."""

import importlib
import itertools
import json
import math
import re
from pathlib import Path

import dp_accounting
import pytest

from dpdm import artifacts
from dpdm.config import load_study
from dpdm.privacy import DpSgdParams, Event, Ledger, PoissonBlocks, ShardBlocks, epsilon_spent
from dpdm.privacy.audit import exported

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *ROOT.glob("*/README.md"), *(ROOT / "docs").glob("*.md")]


def shell_lines() -> list[str]:
    """Every line of every ```sh block, without its comment."""
    blocks = [b for d in DOCUMENTS for b in re.findall(r"```sh\n(.*?)```", d.read_text(), re.S)]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_what_follows_from_the_schema_is_up_to_date(monkeypatch):
    """Else run `python benchmarks/schema.py`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    write = importlib.import_module("schema")
    assert write.SCHEMA.read_text() == write.schema()
    assert write.PAGE.read_text() == write.page(write.PAGE.read_text())
    assert "| `datasets.NAME.delta` | required |" in write.PAGE.read_text()


def test_every_key_of_a_study_is_described():
    """The table shows what the schema says, and the schema says something of every key."""
    models = json.loads((ROOT / "workflow/schemas/study.schema.json").read_text())
    for name, model in {"Study": models, **models["$defs"]}.items():
        silent = [key for key, value in model["properties"].items() if not value.get("description", "").strip()]
        assert set(silent) <= {"source"}, name  # its one value says what it is
    for kind in (DpSgdParams, PoissonBlocks, ShardBlocks):
        assert all(field.description for field in kind.model_fields.values()), kind
    text = (ROOT / "config" / "README.md").read_text()
    rows = re.findall(r"^\| `([\w.\[\]]+)` \|[^|]*\| (.*) \|$", text, re.M)
    assert {"study", "methods.NAME.overrides[].when.epsilon", "dp.steps", "blocks.shards"} <= {key for key, _ in rows}
    assert all(meaning.strip() for _, meaning in rows)


def test_documented_dpdm_commands_parse(parse_cli):
    commands = [line for line in shell_lines() if line.startswith(("python -m dpdm ", "dpdm "))]
    assert len(commands) >= 2
    for command in commands:
        parse_cli(command)


def test_an_outsider_recomputes_epsilon_by_the_documented_lines(tmp_path, monkeypatch, capsys):
    """The lines themselves, run on exported ledgers; where dp-accounting has no event they refuse, not understate."""
    text = (ROOT / "docs" / "privacy.md").read_text().partition("## Recompute epsilon yourself")[2]
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    poisson = Event("poisson_subsampled_gaussian", "net", 1.1, 0.5, 0.02, 300)
    one_shot = Event("gaussian", "sums", 4.0, 3.0)
    shards = Event("categorical_subsampled_gaussian", "blocks", 2.0, 1.0, 0.01, 10)

    def recomputed(*events: Event) -> float:
        ledger = Ledger(1000, 1e-5, 10.0, "rdp", shape=(1, 8, 8), num_classes=10, events=list(events))
        artifacts.write_json(tmp_path / "events.json", {"runs": [exported(ledger.to_json(), "l")]})
        exec(compile(code, "docs/privacy.md", "exec"), {})
        return float(capsys.readouterr().out)

    monkeypatch.chdir(tmp_path)
    for events in ([poisson], [one_shot], [poisson, one_shot]):
        assert recomputed(*events) == pytest.approx(epsilon_spent(events, 1e-5, "pld"), rel=5e-3)
    assert recomputed(Event("gaussian", "sums", 0.0, 3.0)) == math.inf
    assert recomputed() == 0
    with pytest.raises(dp_accounting.UnsupportedEventError):
        recomputed(poisson, shards)


def test_no_target_follows_a_study_on_the_command_line():
    """Snakemake takes every word behind --configfile for a file, up to the next option or `--`."""
    inline = [code for d in DOCUMENTS for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", d.read_text())]
    commands = [line for line in [*shell_lines(), *inline] if " --configfile " in line]
    assert len(commands) > 10
    for command in commands:
        words = command.partition("--configfile ")[2].split()
        files = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
        assert all(re.search(r"\.yaml$|^[A-Z]+$", word) for word in files), command


def test_documented_make_targets_and_studies_exist():
    makefile = (ROOT / "Makefile").read_text()
    for line in shell_lines():
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.M), line
        for study in re.findall(r"config/\w+\.yaml", line):
            load_study(ROOT / study)


def test_the_documented_sizes_are_those_of_the_studies():
    rows = re.findall(r"^\| (.*\.yaml\).*) \| (\d+) \| (\d+) \|$", (ROOT / "docs" / "reproducing.md").read_text(), re.M)
    assert len(rows) == 11
    for name, trainings, sets in rows:
        study = load_study(",".join(str(ROOT / file) for file in re.findall(r"\(\.\./(config/[\w/]+\.yaml)\)", name)))
        runs = study.runs()
        assert (int(trainings), int(sets)) == (len(runs), sum(len(study.methods[r.method].samplers) for r in runs)), (
            name
        )


def test_documented_paper_tables_are_mapped():
    """A documented target makes more than a page of "not run"."""
    for line in shell_lines():
        if files := re.findall(r"config/[\w/]+\.yaml", line.partition("--configfile")[2]):
            study = load_study(",".join(str(ROOT / file) for file in files))
            assert set(re.findall(r"table_\d", line)) <= set(study.tables), line


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document}: {target}"


def test_readme_shows_exactly_what_the_study_wrote(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page, readme = importlib.import_module("_page"), ROOT / "README.md"
    copy = tmp_path / "README.md"
    copy.write_text(readme.read_text())
    script = importlib.import_module("update_readme")
    page.write_block(copy, "results", script.results_block())
    page.write_block(copy, "verdict", script.verdict_block())
    assert copy.read_text() == readme.read_text()
    results = ROOT / "results" / "README.md"
    copy.write_text(results.read_text())
    page.write_block(copy, "best", script.best_block())
    assert copy.read_text() == results.read_text()
    assert len(readme.read_text().splitlines()) <= 90


def test_the_methods_of_the_default_study_are_described():
    text = (ROOT / "docs" / "methods.md").read_text()
    methods = {spec.impl.partition(":")[0] for spec in load_study(ROOT / "config" / "digits.yaml").methods.values()}
    assert all(f"{module.replace('.', '/')}.py" in text for module in methods)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_no_unfinished_sentences(document):
    assert not re.search(r"\b(TODO|TBD|FIXME|XXX)\b", document.read_text())
