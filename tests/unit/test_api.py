"""The Python API, and docs/python.md, whose blocks run here on a results folder of two trained runs."""

import re
from pathlib import Path

import numpy as np
import pytest

import dpdm
from dpdm import artifacts, data, jobs
from dpdm.config import parse_study
from dpdm.errors import UserError
from dpdm.evaluation import extractor
from dpdm.evaluation._network import Recipe
from dpdm.layout import Layout
from dpdm.study import study_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits_train) -> Path:
    """A folder with results/digits: class means trained at one seed of two, drawn, and scored."""
    root = tmp_path_factory.mktemp("notebook")
    dp = {"expected_batch_size": 8, "steps": 1, "max_grad_norm": 1.0}
    study = parse_study(
        {
            "study": "digits", "datasets": {"digits": {"source": "digits", "delta": "1/(2n)"}},
            "epsilons": [10], "seeds": [0, 1], "results_dir": str(root / "results"),
            "methods": {
                "class_mean": {"impl": "baselines.class_mean:ClassMean", "params": {"max_image_norm": 4.0}},
                "classifier": {
                    "impl": "baselines.dpsgd_classifier:DPSGDClassifier", "kind": "classifier",
                    "params": {"network": "logreg", "lr": 0.1, "dp": dp},
                },
            },
            "evaluation": {"synthetic_images": 20, "classifiers": ["logreg"]},
        },
        "digits",
    )  # fmt: skip
    layout = Layout(study.results_dir, study.study)
    artifacts.write_text(layout.study, study_json(study))
    images = data.ImageSet(digits_train.images[:64], digits_train.labels[:64], 10)
    for split in ("train", "test"):
        data.write_images(layout.data("digits", f"{split}.npz"), images)
    artifacts.write_json(
        layout.data("digits", "dataset.json"), {"n": {"train": 64}, "shape": [1, 8, 8], "num_classes": 10}
    )
    run, judge = study.run("digits", "class_mean", 10, 0), study.run("digits", "classifier", 10, 0)
    for one in (run, judge):
        jobs.train(one, images, layout.run(*one.place))
    jobs.sample(
        study,
        layout,
        run,
        "default",
        layout.run(*run.place, "model.pt"),
        layout.set(*run.place, "default", "synthetic.npz"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "RECIPE", Recipe(steps=1, batch_size=16, lr=1e-3))
        jobs.train_extractor(layout, "digits")
    jobs.make_reference(study, layout, "digits", "small_cnn")
    place = layout.set(*run.place, "default")
    jobs.score(study, layout, run.coordinates("default"), f"{place}/synthetic.npz", place)
    return root


@pytest.fixture
def results(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return dpdm.open_results("results/digits")


def test_the_page_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    assert len(blocks) >= 4
    assert all(len(block.splitlines()) <= 10 for block in blocks)
    Path("results/laptop").symlink_to(ROOT / "results" / "laptop")  # a clone has its kept results
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert Path("threes_and_sevens.png").stat().st_size > 0
    assert names["images"].shape == (200, 8, 8)
    assert names["kept"].draw([0], "smooth_distance").shape == (1, 1, 28, 28)
    assert len(names["scores"]) > 0


def test_a_run_has_what_its_files_say(results):
    run = results.run("digits/class_mean/10/0")
    assert run.ledger.to_json() == artifacts.read_json("results/digits/runs/digits/class_mean/eps10/seed0/ledger.json")
    assert set(run.epsilon()) == {"rdp", "prv", "pld"}
    assert 9 < run.epsilon()["rdp"] <= 10
    assert all(0 < value <= 10 for value in run.epsilon().values())
    drawn = data.read_images("results/digits/runs/digits/class_mean/eps10/seed0/default/synthetic.npz")
    assert np.array_equal(run.draw(drawn.labels), drawn.images)
    assert {"fd", "kid", "precision", "recall", "acc_logreg"} <= set(run.scores()["metric"])
    assert set(run.scores()["method"]) == {"class_mean"}
    assert results.runs().set_index("run")["trained"].to_dict() == {
        "digits/class_mean/10/0": True, "digits/class_mean/10/1": False,
        "digits/classifier/10/0": True, "digits/classifier/10/1": False,
    }  # fmt: skip


def test_a_study_file_means_its_results(results, folder):
    assert repr(dpdm.open_results(folder / "results" / "digits")) == f"Results({str(folder / 'results' / 'digits')!r})"
    Path("study.yaml").write_text(results.study.model_dump_json())
    assert len(dpdm.open_results("study.yaml").scores()) == len(results.scores())


def test_training_on_arrays_is_training_on_those_images(digits64):
    arguments = {"num_classes": 10, "method": "class_mean", "params": {"max_image_norm": 4.0}, "epsilon": 10}
    run = dpdm.train_arrays(digits64.images, digits64.labels, **arguments)
    grey = dpdm.train_arrays(digits64.images[:, 0], digits64.labels.astype(np.uint8), **arguments)
    assert np.array_equal(run.draw([1, 2]), grey.draw([1, 2]))
    assert run.ledger.n == 64
    assert run.ledger.delta == 1 / 128
    assert run.spec.impl == "baselines.class_mean:ClassMean"
    sharp = dpdm.train_arrays(digits64.images, digits64.labels, **arguments, sampler={"pixel_noise": 0.0})
    assert np.array_equal(sharp.draw([1])[0], sharp.draw([1, 1])[1])


def test_a_grid_has_the_images_row_by_row():
    images = np.zeros((3, 3, 4, 5), np.uint8)
    images[2] = 200
    figure = dpdm.show(images, columns=2)
    page = figure.axes[0].images[0].get_array()
    assert page.shape == (2 * 4 + 1, 2 * 5 + 1, 3)
    assert (page[5:, :5] == 200).all()
    assert (page[5:, 6:] == 255).all()
    assert figure._repr_png_().startswith(b"\x89PNG")


# What is wrong, and what the sentence must name.
REFUSED = {
    "no such run": (lambda r: r.run("digits/clas_mean/10/0"), ["clas_mean", "digits/class_mean/10/0"]),
    "not trained": (lambda r: r.run("digits/class_mean/10/1").ledger, ["digits/class_mean/10/1", "dpdm train"]),
    "no study": (lambda r: dpdm.open_results("results/data"), ["results/data", "study.json"]),
    "no sampler": (lambda r: r.run("digits/class_mean/10/0").draw([1], "churn"), ["churn", "default"]),
    "a label too large": (lambda r: r.run("digits/class_mean/10/0").draw([1, 10]), ["0..9", "10"]),
    "labels that are no integers": (lambda r: r.run("digits/class_mean/10/0").draw([0.5]), ["0..9", "float64"]),
    "a classifier": (lambda r: r.run("digits/classifier/10/0").draw([1]), ["digits/classifier/10/0", "predict"]),
    "a sampler that is no name": (lambda r: r.run("digits/class_mean/10/0").draw([1], 3), ["default", "3"]),
    "labels of several lengths": (lambda r: r.run("digits/class_mean/10/0").draw([[1], [1, 2]]), ["labels"]),
    "half a row": (lambda r: r.run("digits/class_mean/10/0").show(rows=1.5), ["rows", "1.5"]),
    "fewer rows than none": (lambda r: r.run("digits/class_mean/10/0").show(rows=-1), ["rows", "-1"]),
    "a grid without columns": (lambda r: dpdm.show(np.zeros((1, 1, 2, 2), np.uint8), columns=0), ["columns", "0"]),
    "a grid of no images": (lambda r: dpdm.show([1]), ["uint8", "[1]"]),
    "a grid of floats": (lambda r: dpdm.show(np.zeros((1, 1, 2, 2))), ["float64", "uint8"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_sentence(case, results):
    act, named = REFUSED[case]
    with pytest.raises(UserError) as error:
        act(results)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in named), str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method": "clas_mean"}, ["clas_mean", "class_mean"]),
        ({"params": {"max_image_nrm": 4.0}}, ["max_image_nrm", "max_image_norm"]),
        ({"epsilon": -1.0}, ["epsilon", "-1"]),
        ({"images": np.zeros((4, 1, 8, 8))}, ["uint8", "float64"]),
        ({"labels": [0, 1, 2, 10]}, ["0..9"]),
        ({"images": [[1], [1, 2]]}, ["images"]),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, ["[4, 8, 8, 3]", "transpose"]),
        ({"num_classes": 10.0}, ["num_classes", "10.0"]),
        ({"num_classes": "10"}, ["num_classes", "'10'"]),
        ({"num_classes": None}, ["num_classes", "None"]),
        ({"params": "x"}, ["params", "'x'"]),
        ({"params": [1]}, ["params"]),
        ({"sampler": "x"}, ["sampler", "'x'"]),
        ({"sampler": {"pixel_nois": 1.0}}, ["sampler", "pixel_nois", "pixel_noise"]),
    ],
)
def test_what_cannot_be_trained_is_refused(change, named):
    arguments = {
        "images": np.zeros((4, 1, 8, 8), np.uint8), "labels": [0, 1, 2, 3], "num_classes": 10, "epsilon": 10.0,
        "method": "class_mean", "params": {"max_image_norm": 4.0},
    }  # fmt: skip
    with pytest.raises(UserError) as error:
        dpdm.train_arrays(**(arguments | change))
    assert all(word in str(error.value) for word in named), str(error.value)


def test_the_package_loads_nothing_until_it_is_used(run_python):
    code = "import dpdm, sys; assert 'open_results' in dir(dpdm); print(','.join(sys.modules))"
    found = run_python("-c", code)
    assert found.returncode == 0, found.stderr
    assert not {"torch", "numpy", "pandas", "dpdm.api"} & set(found.stdout.strip().split(","))
    with pytest.raises(AttributeError):
        dpdm.open_result  # noqa: B018
