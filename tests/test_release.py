"""What a release consists of: pins, environments, and the files about the project."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SETS = ("cpu", "cuda")


def pins(name: str) -> dict[str, tuple[str, list[str]]]:
    """Of each package of a set: version and hashes."""
    blocks = re.findall(
        r"^([a-z0-9-]+)==([^ ]+) .*\n((?: +--hash=.*\n)*)", (ROOT / f"requirements/{name}.txt").read_text(), re.M
    )
    return {package: (version, re.findall(r"sha256:[0-9a-f]{64}\b", hashes)) for package, version, hashes in blocks}


@pytest.mark.parametrize("name", SETS)
def test_the_pins_are_of_every_requirement_and_have_hashes(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = pins(name)
    assert len(found) > 100
    assert all(hashes for _, hashes in found.values())
    assert min(len(found[package][1]) for package in ("numpy", "pillow")) > 10  # of other Pythons and systems too
    for text in [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]:
        required = Requirement(text)
        version, _ = found[re.sub(r"[._]", "-", required.name).lower()]
        assert required.specifier.contains(version), text


def test_the_two_sets_differ_in_pytorch_only():
    cpu, cuda = pins("cpu"), pins("cuda")
    assert {name for name in cpu if cpu[name] != cuda[name]} == {"torch"}
    assert cpu["torch"][0] == cuda["torch"][0] + "+cpu"
    assert all(name.startswith(("nvidia", "cuda", "triton")) for name in set(cuda) - set(cpu))


def test_the_environment_of_conda_has_the_pins():
    environment = yaml.safe_load((ROOT / "workflow/envs/dpdm.yaml").read_text())
    listed = [line.partition(" ")[0] for line in environment["dependencies"][-1]["pip"]]
    assert listed == [f"{name}=={version}" for name, (version, _) in pins("cuda").items()]
