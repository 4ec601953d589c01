"""Who may import whom, and what must never be: the architecture, read off the syntax trees."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
NUMERICAL = {
    "torch",
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
    "opacus",
    "dp_accounting",
    "torchvision",
    "torch_fidelity",
}
WORKFLOW_MAY = (
    "dpdm.cli.terminal",
    "dpdm.config",
    "dpdm.errors",
    "dpdm.layout",
    "dpdm.report.registry",
    "dpdm.report.selection",
    "dpdm.specs",
)
SCHEMA = {"dpdm.errors", "dpdm.params", "dpdm.explain", "dpdm.specs", "dpdm.config"}
FOUNDATIONS = SCHEMA | {"dpdm.artifacts", "dpdm.rng", "dpdm.data"}
METHOD_MAY = {
    f"dpdm.{name}" for name in ("efflite", "method", "mixture", "networks", "params", "privacy", "data", "rng")
}
METHOD_MAY |= {"dpdm.departures", "dpdm.errors", "dpdm.progress"}

# The modules of this project that each part may import; the longest prefix decides. A part may import itself.
# `dpdm` alone (the version) is no module below it, and only provenance has a use for it.
MAY_IMPORT = {
    "dpdm": {"dpdm.api"},  # inside a function, for notebooks
    "dpdm.errors": set(),
    "dpdm.params": set(),
    "dpdm.layout": set(),
    "dpdm.explain": {"dpdm.errors"},
    "dpdm.yaml_file": {"dpdm.errors"},
    "dpdm.parts": {"dpdm.errors", "dpdm.explain"},
    "dpdm.specs": {"dpdm.errors", "dpdm.evaluation.registry", "dpdm.explain", "dpdm.params"},
    "dpdm.sources": {"dpdm.artifacts", "dpdm.data", "dpdm.errors", "dpdm.params"},
    "dpdm.config": {
        f"dpdm.{name}" for name in ("errors", "explain", "layout", "params", "sources", "specs", "yaml_file")
    },
    "dpdm.study": SCHEMA | {"dpdm.layout", "dpdm.yaml_file"},
    "dpdm.artifacts": {"dpdm.errors"},
    "dpdm.rng": set(),
    "dpdm.data": {"dpdm.artifacts", "dpdm.errors", "dpdm.explain", "dpdm.params", "dpdm.rng"},
    "dpdm.departures": {"dpdm.data"},
    "dpdm.networks": {"dpdm.data", "dpdm.errors", "dpdm.params", "dpdm.rng"},
    "dpdm.mixture": {"dpdm.data", "dpdm.errors", "dpdm.params", "dpdm.privacy", "dpdm.rng"},
    "dpdm.progress": set(),
    "dpdm.processes": {"dpdm.errors"},
    "dpdm.checkpoint": {"dpdm.artifacts", "dpdm.errors", "dpdm.processes", "dpdm.progress"},
    "dpdm.provenance": {"dpdm", "dpdm.artifacts"},
    "dpdm.privacy": FOUNDATIONS | {"dpdm.checkpoint", "dpdm.processes", "dpdm.progress"},
    "dpdm.smoothing": {"dpdm.errors", "dpdm.explain", "dpdm.params", "dpdm.rng"},
    "dpdm.warm": FOUNDATIONS | {"dpdm.privacy", "dpdm.progress", "dpdm.smoothing", "dpdm.sources"},
    "dpdm.teacher": FOUNDATIONS | {"dpdm.privacy", "dpdm.progress", "dpdm.warm"},
    "dpdm.method": FOUNDATIONS
    | {"dpdm.checkpoint", "dpdm.layout", "dpdm.privacy", "dpdm.processes", "dpdm.progress", "dpdm.provenance"}
    | {"dpdm.sources", "dpdm.teacher", "dpdm.warm"},
    "dpdm.rehearsal": FOUNDATIONS | {"dpdm.evaluation", "dpdm.privacy", "dpdm.method", "dpdm.progress"},
    "dpdm.plan": FOUNDATIONS | {"dpdm.privacy", "dpdm.method", "dpdm.smoothing", "dpdm.sources"},
    "dpdm.attacks": FOUNDATIONS
    | {"dpdm.method", "dpdm.plan", "dpdm.privacy", "dpdm.progress", "dpdm.provenance", "dpdm.smoothing"},
    "dpdm.diffusion": METHOD_MAY,
    "dpdm.efflite": {"dpdm.artifacts", "dpdm.errors"},
    "dpdm.evaluation": FOUNDATIONS | {"dpdm.efflite", "dpdm.networks", "dpdm.parts", "dpdm.progress"},
    "dpdm.evaluation.registry": {"dpdm.errors", "dpdm.parts"},  # names only, by which a study is checked
    "dpdm.report": SCHEMA | {"dpdm.artifacts", "dpdm.layout", "dpdm.parts", "dpdm.progress", "dpdm.provenance"},
    "dpdm.jobs": FOUNDATIONS
    | {"dpdm.layout", "dpdm.method", "dpdm.plan", "dpdm.privacy", "dpdm.processes", "dpdm.progress", "dpdm.provenance"}
    | {"dpdm.checkpoint", "dpdm.evaluation", "dpdm.rehearsal", "dpdm.smoothing"},
    "dpdm.catalog": FOUNDATIONS | {"dpdm.sources", "dpdm.layout", "dpdm.evaluation", "dpdm.method", "dpdm.smoothing"},
    "dpdm.scaffold": SCHEMA | {"dpdm.artifacts", "dpdm.layout"},
    "dpdm.api": FOUNDATIONS
    | {"dpdm.catalog", "dpdm.jobs", "dpdm.layout", "dpdm.method", "dpdm.privacy", "dpdm.processes", "dpdm.progress"}
    | {"dpdm.report", "dpdm.smoothing", "dpdm.study"},
    "dpdm.cli": {"dpdm"},  # everything: the only composition root
    "dpdm.__main__": {"dpdm.cli"},
    "baselines": METHOD_MAY,
}

# Libraries that only the named part may import.
ONLY_IN = {
    "opacus": "dpdm.privacy",
    "dp_accounting": "dpdm.privacy",
    "torch_fidelity": "dpdm.evaluation",
    "torchvision": "dpdm.evaluation",
    "snakemake": None,
    "pickle": None,
    "dill": None,
    "cloudpickle": None,
}

# Libraries that a part must not import, also inside a function.
LIGHT = [*SCHEMA, "dpdm.parts", "dpdm.yaml_file", "dpdm.study", "dpdm.report.selection", "dpdm.report.registry"]
NEVER_IN = dict.fromkeys(LIGHT, NUMERICAL) | {"dpdm.report": {"torch"}, "dpdm.layout": NUMERICAL | {"pydantic", "yaml"}}

SEEDING = {"torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all",
           "torch.random.manual_seed", "np.random.seed", "numpy.random.seed", "random.seed"}  # fmt: skip


class Problem(NamedTuple):
    """A breach of the architecture, with its place."""

    module: str
    line: int
    what: str


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Every imported module, also inside functions; `from a import b` gives `a.b`, relative ones are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func) in ("importlib.import_module", "__import__"):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant):
                yield node.lineno, argument.value


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, else the empty string."""
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return node.id if isinstance(node, ast.Name) else ""


def problems(source: str, module: str) -> list[Problem]:
    """Every breach in the source of one module."""
    tree = ast.parse(source)
    part = max((p for p in MAY_IMPORT if within(module, p) and (p != "dpdm" or module == p)), key=len, default=None)
    if part is None:
        return [Problem(module, 1, "belongs to no part of the architecture; add it to MAY_IMPORT")]
    out = []
    for line, name in imports(tree, module):
        top = name.partition(".")[0]
        if top in ("dpdm", "baselines") and not _allowed(part, module, name):
            out.append(Problem(module, line, f"imports {name}"))
        if top in ONLY_IN and not (ONLY_IN[top] and within(module, ONLY_IN[top])):
            out.append(Problem(module, line, f"imports {top}"))
        if any(within(module, p) and top in libraries for p, libraries in NEVER_IN.items()):
            out.append(Problem(module, line, f"imports {top}"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            out.append(Problem(module, node.lineno, "has a bare except"))
        if isinstance(node, ast.Call) and dotted(node.func) in SEEDING and module != "dpdm.rng":
            out.append(Problem(module, node.lineno, f"calls {dotted(node.func)}"))
    return out


def _allowed(part: str, module: str, name: str) -> bool:
    if part == "dpdm.cli":
        return not within(name, "baselines")
    if part == "baselines":
        if within(name, "baselines"):
            return name.split(".")[1].startswith("_")
    elif within(name, part) and part != "dpdm":
        return True
    # `dpdm` itself stands for its version alone, not for the modules below.
    return any(name in ("dpdm", "dpdm.__version__") if p == "dpdm" else within(name, p) for p in MAY_IMPORT[part])


def sources() -> dict[str, str]:
    """Module name -> source, of both packages."""
    out = {}
    for path in sorted([*(ROOT / "dpdm").rglob("*.py"), *(ROOT / "baselines").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return out


def workflow_problems(source: str, name: str) -> list[Problem]:
    """Imports of a Snakefile beyond the study's schema; its syntax is not Python's, so by lines."""
    out = []
    for number, line in enumerate(source.splitlines(), 1):
        if match := re.match(r"\s*(?:from\s+([\w.]+)\s+import\s+([\w ,]+)|import\s+([\w., ]+))", line):
            base, names, modules = match.groups()
            for item in (names or modules).split(","):
                imported = ".".join(filter(None, (base, item.split()[0])))
                own = imported.partition(".")[0] in ("dpdm", "baselines")
                allowed = any(within(imported, name) for name in WORKFLOW_MAY)
                if (own and not allowed) or imported.partition(".")[0] in NUMERICAL:
                    out.append(Problem(name, number, f"imports {imported}"))
    return out


# --- the project ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", sources())
def test_the_module_keeps_to_the_architecture(module):
    assert problems(sources()[module], module) == []


def circle(modules: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, also inside functions; empty if there are none."""
    graph: dict[str, set[str]] = {}
    for module, source in modules.items():
        names = {name for _, name in imports(ast.parse(source), module)}
        found = {max((m for m in modules if within(name, m)), key=len, default=module) for name in names}
        graph[module] = {name for name in found if not within(module, name)}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(sources()) == []
    assert circle({"p": "import p.a", "p.a": "def f():\n    from p.b import x", "p.b": "from p import a"}) != []


def test_both_packages_were_found():
    assert {"dpdm", "dpdm.cli", "dpdm.privacy.door", "baselines.class_mean"} <= set(sources())


def workflow_files() -> list[Path]:
    return [ROOT / "Snakefile", ROOT / "workflow/Snakefile", *sorted((ROOT / "workflow").rglob("*.smk"))]


@pytest.mark.parametrize("path", workflow_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_workflow_imports_the_schema_alone(path):
    assert workflow_problems(path.read_text(), path.name) == []


def test_the_workflow_was_found():
    names = {path.name for path in workflow_files()}
    assert {"Snakefile", "common.smk", "train.smk"} <= names


def test_train_never_sees_test_images_or_scores():
    text = (ROOT / "workflow" / "rules" / "train.smk").read_text()
    inputs = re.search(r"rule train:.*?input:(.*?)output:", text, re.DOTALL)[1]
    assert "prepare.output.train" in inputs
    assert not re.search(r"test|score|fidelity|utility|metrics", inputs)


# --- the check itself -----------------------------------------------------------------------------------------

BREACHES = [
    ("dpdm.diffusion.method", "import opacus.optimizers", "imports opacus"),
    ("dpdm.method", "def f():\n    from opacus import PrivacyEngine", "imports opacus"),
    ("dpdm.artifacts", "import pickle", "imports pickle"),
    ("dpdm.cli.runs", "from baselines import class_mean", "imports baselines.class_mean"),
    ("dpdm.layout", "import yaml", "imports yaml"),
    ("dpdm.method", "import importlib\nimportlib.import_module('baselines.x')", "imports baselines.x"),
    ("baselines.x", "from .class_mean import Model", "imports baselines.class_mean.Model"),
    ("baselines.x", "from dpdm import artifacts", "imports dpdm.artifacts"),
    ("dpdm.evaluation.fidelity", "from dpdm.privacy import Ledger", "imports dpdm.privacy.Ledger"),
    ("dpdm.report.html", "def f():\n    import torch.nn", "imports torch"),
    ("dpdm.privacy.door", "from dpdm.method import load_method", "imports dpdm.method.load_method"),
    ("dpdm.config", "def f():\n    import numpy as np", "imports numpy"),
    ("dpdm", "from dpdm import config", "imports dpdm.config"),
    ("dpdm.data", "import torch\ntorch.manual_seed(0)", "calls torch.manual_seed"),
    ("baselines.x", "import numpy as np\ndef f():\n    np.random.seed(0)", "calls np.random.seed"),
    ("dpdm.data", "try:\n    pass\nexcept:\n    pass", "has a bare except"),
    ("dpdm.new_thing", "", "belongs to no part of the architecture; add it to MAY_IMPORT"),
]


@pytest.mark.parametrize(("module", "source", "what"), BREACHES)
def test_a_breach_is_found(module, source, what):
    assert [problem.what for problem in problems(source, module)] == [what]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("baselines.x", "from baselines._gan import Generator\nfrom dpdm.privacy import PrivateData"),
        ("dpdm.privacy.dpsgd", "from opacus.optimizers import DPOptimizer\nfrom dpdm.privacy.ledger import Ledger"),
        ("dpdm.rng", "import torch\ntorch.manual_seed(0)"),
        ("dpdm.cli.workflow", "from dpdm.report import tables\nfrom dpdm import artifacts"),
        ("dpdm.data", "try:\n    pass\nexcept Exception:\n    pass"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert problems(source, module) == []


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("from dpdm import config as schema", 0),
        ("from dpdm import config, data", 1),
        ("    import dpdm.method", 1),
        ("from baselines.class_mean import ClassMean", 1),
    ],
)
def test_a_breach_of_the_workflow_is_found(line, count):
    assert len(workflow_problems(f"rule a:\n{line}\n", "x.smk")) == count
