"""docs/adding_a_method.md as its reader follows it: its file, its entry, its row."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml

PAGE = (Path(__file__).parents[2] / "docs" / "adding_a_method.md").read_text()


def test_the_pages_file_and_entry_give_a_row(again, tiny, edit):
    name, code = re.search(r"```python\n# (my_methods/\w+\.py)\n(.*?)```", PAGE, re.S).groups()
    entry = yaml.safe_load(re.search(r"```yaml\n(methods:.*?)```", PAGE, re.S)[1])["methods"]
    (method,) = entry
    module = again.path / name
    module.parent.mkdir()
    module.write_text(code)
    study = edit(tiny)
    study["methods"] |= entry
    again.write(study)
    outcome = replace(again, python_path=(again.path,)).snakemake()
    assert outcome.code == 0, outcome.text
    assert outcome.counts["train"] == len(tiny["epsilons"])  # the new method alone
    rows = pd.read_csv(again.path / "results" / "tiny" / "tables" / "results.csv")
    row = rows[(rows["method"] == method) & (rows["epsilon"].astype(str).str.startswith("10"))].iloc[0]
    assert row["acc_logreg_test_mean"] > 20  # ten classes: it learnt something
    audits = pd.read_csv(again.path / "results" / "tiny" / "audits.csv")
    assert audits.loc[audits["method"] == method, "passed"].all()
    assert method in (again.path / "results" / "tiny" / "report.html").read_text()
