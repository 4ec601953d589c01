"""A wrong line of a registry, or a part with a mistake, ends in one sentence that names the line, before any run."""

import sys
import types

import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from refusals import refused, refuses
from torch import nn

from dpdm.config import parse_study
from dpdm.evaluation import classifiers, fidelity
from dpdm.evaluation import registry as judges
from dpdm.parts import Part
from dpdm.rehearsal import check_judges
from dpdm.report import registry as report
from dpdm.report.tables import Table

WRONG_LINES = [  # line, what the message says
    ("made.part", ["module:name"]),
    ("made:", ["module:name"]),
    (":part", ["module:name"]),
    ("nowhere:part", ["nowhere", "ModuleNotFoundError"]),
    ("dpdm.evaluation.fidelityy:FD", ["'dpdm.evaluation.fidelity'"]),
    ("made:prt", ["made", "prt", "'part'"]),
    ("made:number", ["int"]),
]


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """A module of the user's."""
    module = types.ModuleType("made")
    module.part, module.number = (lambda *_: None), 3
    monkeypatch.setitem(sys.modules, "made", module)
    return module


@pytest.mark.parametrize(("line", "facts"), WRONG_LINES)
def test_a_line_that_names_no_function(line, facts):
    with refuses("file.py", 'PARTS["mine"]', line, *facts):
        Part("file.py", "PARTS", "mine", line).function()


def test_a_module_that_fails_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise SystemExit('oh')")
    monkeypatch.syspath_prepend(tmp_path)
    with refuses('PARTS["mine"]', "broken:x", "SystemExit", "oh"):
        Part("file.py", "PARTS", "mine", "broken:x").load()


REGISTRIES = [
    (judges, "METRICS", lambda line: line),
    (judges, "EXTRACTORS", lambda line: line),
    (judges, "CLASSIFIERS", lambda line: line),
    (report, "FIGURES", lambda line: report.Item(line, "What it shows.")),
    (report, "TABLES", lambda line: report.Item(line, "What it shows.")),
]


@pytest.mark.parametrize(
    ("owner", "name", "as_line"), REGISTRIES, ids=lambda value: value if type(value) is str else ""
)
def test_check_and_validate_load_what_a_study_uses(
    owner, name, as_line, tiny_study_dict, run_cli, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(getattr(owner, name), "mine", as_line("dpdm.evaluation.fidelityy:X"))
    tiny_study_dict["methods"].pop("dpdm")  # about which there are doubts
    study = parse_study(tiny_study_dict, "tiny")
    of_study = {"CLASSIFIERS": "classifiers", "EXTRACTORS": "extractors"}
    if name in of_study:  # the schema has read the names of the registry already
        evaluation = study.evaluation.model_copy(update={of_study[name]: ("mine",)})
        with refuses(f'{name}["mine"]', "fidelityy", "'dpdm.evaluation.fidelity'"):
            check_judges(study.model_copy(update={"evaluation": evaluation}))
        return
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny_study_dict))
    (tmp_path / "given.json").write_text(study.model_dump_json())
    for words in (["check", "study.yaml"], ["validate", "given.json"]):
        refused(run_cli(*words), "registry.py", f'{name}["mine"]', "fidelityy", "'dpdm.evaluation.fidelity'")
    assert not list(tmp_path.rglob("results/*/*"))


def fails(*_):
    raise ValueError("oh")


class Net(nn.Module):
    """Gives what it was made with."""

    def __init__(self, given):
        super().__init__()
        self.given = given

    def forward(self, images):
        return self.given(images)


@pytest.mark.parametrize(
    ("build", "facts"),
    [
        (lambda shape, classes: None, ["NoneType", "torch.nn.Module"]),
        (fails, ["ValueError", "oh"]),
        (lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), ["[2, 5]", "[2, 10]"]),
        (lambda shape, classes: Net(lambda images: None), ["NoneType", "[2, 10]"]),
        (lambda shape, classes: Net(fails), ["ValueError", "oh"]),
        (lambda shape, classes: nn.Linear(64, 10), ["RuntimeError"]),
    ],
)
def test_a_classifier_with_a_mistake(made, build, facts, tiny_study_dict, monkeypatch):
    made.part = build
    monkeypatch.setitem(judges.CLASSIFIERS, "mine", "made:part")
    study = parse_study(tiny_study_dict, "tiny")
    evaluation = study.evaluation.model_copy(update={"classifiers": ("logreg", "mine")})
    before = torch.random.get_rng_state()
    with refuses('CLASSIFIERS["mine"]', "made:part", *facts):
        check_judges(study.model_copy(update={"evaluation": evaluation}))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_is_tried_without_a_trace(made):
    made.part = lambda shape, classes: nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, classes)
    )
    before = torch.random.get_rng_state()
    torch.manual_seed(0)
    network = classifiers.untrained(Part("file.py", "PARTS", "mine", "made:part"), (1, 8, 8), 10)
    tried = torch.rand(3)
    torch.manual_seed(0)
    plain = made.part((1, 8, 8), 10)
    assert torch.equal(torch.rand(3), tried)
    torch.random.set_rng_state(before)
    assert network.training
    assert all(torch.equal(one, plain.state_dict()[name]) for name, one in network.state_dict().items())


@pytest.mark.parametrize(
    ("metric", "facts"),
    [
        (len, ["fidelity.Metric"]),
        (fidelity.Metric("lower", fails), ["fidelity.Metric"]),
        (fidelity.Metric({"odd": "up"}, fails), ["odd", "'up'", "lower", "higher"]),
        (fidelity.Metric({"fd": "lower"}, fails), ["fd", 'METRICS["fd"]']),
        (fidelity.Metric({"fid": "lower"}, fails), ["fid", "Inception"]),
    ],
)
def test_a_metric_that_is_none(made, metric, facts, monkeypatch):
    made.part = metric
    monkeypatch.setitem(judges.METRICS, "mine", "made:part")
    with refuses('METRICS["mine"]', "made:part", *facts):
        fidelity.metrics()


@pytest.mark.parametrize("registry", ["FIGURES", "TABLES"])
@pytest.mark.parametrize(("function", "facts"), [(lambda _: None, ["NoneType"]), (fails, ["ValueError", "oh"])])
def test_a_figure_or_table_with_a_mistake(made, registry, function, facts, monkeypatch):
    made.part, item = function, report.Item("made:part", "What it shows.")
    monkeypatch.setitem(getattr(report, registry), "mine", item)
    with refuses(f'{registry}["mine"]', "made:part", *facts):
        item.make(None)


def test_a_sound_figure_or_table(made, monkeypatch):
    frame = pd.DataFrame({"a": [1]})
    for items, sound, other in (
        (report.FIGURES, Figure(), Table(frame, frame)),
        (report.TABLES, Table(frame, frame), Figure()),
    ):
        made.part, item = (lambda _, result=sound: result), report.Item("made:part", "What it shows.")
        with monkeypatch.context() as patch:
            patch.setitem(items, "mine", item)
            assert item.make(None) is sound
            made.part = lambda _, result=other: result
            with refuses("made:part", type(other).__name__):
                item.make(None)
