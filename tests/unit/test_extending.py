"""docs/extending.md, carried out: its blocks in a copy of the repository, with one line each to register them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = dict(re.findall(r"^\*\*An? ([\w ]+)\*\*.*?```python\n(.*?)```", PAGE, re.S | re.M))
NEW = {
    "dpdm/evaluation/mean_gap.py": BLOCKS["metric"],
    "dpdm/evaluation/pixels.py": BLOCKS["extractor"],
    "dpdm/evaluation/linear.py": BLOCKS["classifier"],
    "dpdm/sources/stripes.py": BLOCKS["data set"],
    "dpdm/privacy/dwork_roth.py": BLOCKS["accountant"],
    "dpdm/report/seeds.py": BLOCKS["figure"],
    "dpdm/report/counts.py": BLOCKS["table"],
}
REGISTRY = "dpdm/evaluation/registry.py"
ITEMS = "dpdm/report/registry.py"
CHANGES = [  # file, what is there, what replaces it
    (REGISTRY, "METRICS = {", 'METRICS = {"mean_gap": "dpdm.evaluation.mean_gap:MEAN_GAP",'),
    (REGISTRY, "\nEXTRACTORS = {", '\nEXTRACTORS = {"pixels": "dpdm.evaluation.pixels:pixels",'),
    (REGISTRY, "CLASSIFIERS = {", 'CLASSIFIERS = {"linear": "dpdm.evaluation.linear:linear",'),
    (ITEMS, "FIGURES: dict[str, Item] = {", 'FIGURES = {"seeds": Item("dpdm.report.seeds:seeds", "Every seed."),'),
    (ITEMS, "TABLES: dict[str, Item] = {", 'TABLES = {"counts": Item("dpdm.report.counts:counts", "Counts."),'),
    ("dpdm/sources/__init__.py", "import Npz\n", "import Npz\nfrom dpdm.sources.stripes import Stripes\n"),
    ("dpdm/sources/__init__.py", "Folder, Npz)", "Folder, Npz, Stripes)"),
    ("dpdm/specs.py", '"prv", "pld"]', '"prv", "pld", "dwork_roth"]'),
    ("dpdm/diffusion/method.py", "class SamplerParams(", BLOCKS["sampler"] + "\n\nclass SamplerParams("),
    ("dpdm/diffusion/method.py", "Dpmpp2m, Field(disc", "Dpmpp2m | OneStep, Field(disc"),
    (
        "dpdm/diffusion/denoiser.py",
        "Parametrisation = Annotated[",
        BLOCKS["parametrization"] + "\n\nParametrisation = Annotated[",
    ),
    ("dpdm/diffusion/denoiser.py", " | Ve, Field(disc", " | Ve | Uniform, Field(disc"),
]


@pytest.fixture(scope="module")
def dpdm(code_copy, tmp_path_factory):
    """`dpdm(*commands) -> what they print`: the command line of a copy of the repository that has all these parts."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(code_copy, root, dirs_exist_ok=True)
    for file, content in NEW.items():
        (root / file).write_text(content)
    for file, old, new in CHANGES:
        text = (root / file).read_text()
        assert text.count(old) == 1, (file, old)
        (root / file).write_text(text.replace(old, new))

    def run(*commands: str) -> str:
        code = f"from dpdm.cli import main\nfor c in {commands!r}: assert main(c.split()) == 0, c"
        done = subprocess.run([sys.executable, "-c", code], cwd=root, env={"PYTHONPATH": str(root)}, text=True,
                              capture_output=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.root = root
    return run


def test_a_new_part_is_listed(dpdm):
    listed = dpdm("list metrics", "list datasets", "list samplers")
    for row in (
        r"mean_gap +small_cnn +lower +largest difference of a feature's mean",
        r"mean_gap +pixels +lower",
        r"acc_linear +higher +.* linear, trained on synthetic ones",
        r"stripes +Images of stripes.* +count",
        r"dpdm +one_step +Denoises pure noise once",
        r"every generator +any +Total variation denoising.* +tv_weight",
    ):
        assert re.search(rf"^{row}", listed, re.M), row


@pytest.mark.slow
def test_a_study_uses_the_new_parts(dpdm, tiny_study_dict):
    tiny_study_dict["datasets"] = {"stripes": {"source": "stripes", "count": 64, "delta": "1/(2n)"}}
    tiny_study_dict |= {"epsilons": [0.5, "inf"], "accountant": "dwork_roth"}
    tiny_study_dict["evaluation"]["classifiers"] = ["linear"]
    method = tiny_study_dict["methods"]["dpdm"]
    method["params"]["parametrisation"] = {"kind": "uniform"}
    method["samplers"] = {"default": {"kind": "one_step"}}
    (dpdm.root / "study.yaml").write_text(yaml.safe_dump(tiny_study_dict))
    runs = "stripes/dpdm/inf/0", "stripes/class_mean/0.5/0"
    trained = dpdm(*(f"train study.yaml {run}" for run in runs), f"sample study.yaml {runs[0]}",
                   f"score study.yaml {runs[0]}")  # fmt: skip
    assert "(DWORK_ROTH)" in trained
    folder = dpdm.root / "results/tiny/runs/stripes/dpdm/epsinf/seed0/default"
    assert "acc_linear" in (folder / "utility.json").read_text()
    fidelity = (folder / "fidelity.json").read_text()
    assert "mean_gap" in fidelity
    assert "pixels" in fidelity
    assert "passed" in dpdm(f"audit study.yaml {runs[1]}")
    shown = dpdm("collect study.yaml", "tables study.yaml", "figures study.yaml seeds")
    assert "counts.html" in shown
    results = dpdm.root / "results/tiny"
    assert (results / "tables/counts.csv").read_text().startswith("method,scores\ndpdm,")
    assert (results / "figures/seeds.svg").stat().st_size
