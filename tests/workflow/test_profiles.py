"""The profiles of clusters against the workflow that they are for; tests/cluster runs them."""

import re
from pathlib import Path

import pytest
import yaml

PROFILES = {"slurm": "snakemake_executor_plugin_slurm", "generic": "snakemake_executor_plugin_cluster_generic"}


def profile(checkout: Path, name: str) -> dict:
    return yaml.safe_load((checkout / "profiles" / name / "config.yaml").read_text())


def rules(checkout: Path) -> set[str]:
    """Every rule of the workflow; those of the paper's tables are made in a loop."""
    text = "\n".join(path.read_text() for path in (checkout / "workflow" / "rules").glob("*.smk"))
    named = set(re.findall(r"^rule (\w+):", text, re.MULTILINE)) | set(re.findall(r"^use rule \w+ as (\w+)", text, re.M))
    return named | {f"table_{number}" for number in range(1, 7)}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_names_rules_that_exist(checkout, name):
    known = rules(checkout)
    assert {"train", "score_anchor"} <= known
    content = profile(checkout, name)
    assert set(content["groups"]) | set(content.get("set-resources", ())) <= known
    assert set(content["group-components"]) <= set(content["groups"].values())


def test_what_wants_a_gpu_shares_no_job(checkout):
    """The jobs of a group run one after the other, but Slurm would be asked for the GPUs of all of them."""
    text = "\n".join(path.read_text() for path in (checkout / "workflow" / "rules").glob("*.smk"))
    rule_texts = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL))
    wanting = {rule for rule, body in rule_texts.items() if re.search(r"^ +(resources: +)?gpu=", body, re.MULTILINE)}
    assert wanting == {"train", "reference", "sample", "score_inception"}
    wanting.add("score_inception_anchor")
    for name in PROFILES:
        assert not wanting & set(profile(checkout, name)["groups"])
    slurm = (checkout / "profiles" / "slurm" / "config.yaml").read_text()
    assert set(re.findall(r"^  # (\w+): \{gpu: 0\}", slurm, re.MULTILINE)) | {"train"} == wanting


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_read_and_stands_beside_the_default_one(folder, tiny, checkout, name):
    pytest.importorskip(PROFILES[name])
    folder.write(tiny)
    plan = folder.dry("--profile", str(checkout / "profiles" / name))
    assert f"profiles/{name} and workflow specific profile" in plan.text
    assert plan.counts == folder.dry().counts
