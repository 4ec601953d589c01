"""What tests share: one thread, 64 digits, a tiny study, and the command line in this process or another."""

import copy
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_limits

from dpdm import artifacts
from dpdm.cli import main, verbs
from dpdm.data import ImageSet
from dpdm.evaluation.fidelity import import_torch_fidelity
from dpdm.sources.digits import Digits

ROOT = Path(__file__).parents[1]
CODE = ("dpdm", *tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dpdm"]["shipped"])
THREAD_VARIABLES = [f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")]

TINY_STUDY = {
    "study": "tiny",
    "datasets": {"digits": {"source": "digits", "delta": "1/(2n)"}},
    "epsilons": [10, float("inf")],
    "seeds": [0, 1],
    "methods": {
        "class_mean": {"impl": "baselines.class_mean:ClassMean", "params": {"max_image_norm": 4.0}},
        "dpdm": {
            "impl": "dpdm.diffusion.method:DPDM",
            "params": {
                "network": {"channels": 8, "channel_mult": [1], "blocks_per_level": 1, "attention_resolutions": []},
                "noise_multiplicity": 2,
                "dp": {"expected_batch_size": 16, "steps": 2, "max_grad_norm": 1.0},
            },
            "samplers": {"default": {"num_sampling_steps": 2}},
            "overrides": [{"when": {"epsilon": float("inf")}, "params": {"dp": {"steps": 3}}}],
        },
    },
    "evaluation": {"synthetic_images": 20, "classifiers": ["logreg"]},
}


def pytest_configure(config: pytest.Config) -> None:
    """Tests share two cores with whatever else runs: more threads than one only get into each other's way."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    for variable in THREAD_VARIABLES:  # for the processes that tests start
        os.environ[variable] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The two longest files come first, so that the processes of a parallel run end together."""
    items.sort(key=lambda item: item.path.stem not in ("test_cluster", "test_workflow"))


@pytest.fixture(scope="session")
def code_copy(tmp_path_factory) -> Path:
    """A copy of the code under test: a file saved while workflows run must not part their results in two."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in CODE:
        copy_one = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy_one(ROOT / name, folder / name)
    return folder


@pytest.fixture
def spied(monkeypatch) -> None:
    """Callbacks may keep what they are shown, for tests that look at it."""
    monkeypatch.setattr("dpdm.privacy.traces.state_of", lambda *_: {})


@pytest.fixture(scope="session")
def digits_train() -> ImageSet:
    """scikit-learn's digits, the training split."""
    return Digits().load()["train"]


@pytest.fixture
def digits64(digits_train) -> ImageSet:
    """64 digits, 8x8: a copy, so that a test may write into it."""
    return ImageSet(digits_train.images[:64].copy(), digits_train.labels[:64].copy(), 10, "digits64")


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> Path:
    """A file that fits torch-fidelity's Inception: random weights, of a size that keeps features near 1 throughout."""
    import_torch_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            pass

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    artifacts.write_tensors(path, {})  # something to read
    state = Unloaded("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)).state_dict()
    generator = torch.Generator().manual_seed(0)
    for value in state.values():
        if value.dim() == 4:  # of a convolution; batch norm's are 1 and 0
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
    artifacts.write_tensors(path, dict(state))
    return path


@pytest.fixture
def tiny_study_dict() -> dict[str, Any]:
    """A study for `parse_study`, to be changed at will: one dataset, two methods, seconds to run."""
    return copy.deepcopy(TINY_STUDY)


@pytest.fixture
def run_cli(capsys, monkeypatch):
    """`run_cli(*arguments) -> (code, stdout, stderr)`: the command line in this process."""
    # main sets the thread variables; what is set through monkeypatch first is put back afterwards.
    for variable in THREAD_VARIABLES:
        monkeypatch.setenv(variable, "1")

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def parse_cli(monkeypatch):
    """`parse_cli("python -m dpdm VERB ...") -> (verb, parameters)`: what the command line makes of it; runs nothing.

    STUDY and DATASET stay as they are written.
    """
    monkeypatch.setattr("dpdm.study.open_study", lambda named: (named, None))
    monkeypatch.setattr("dpdm.study.find_dataset", lambda _, name: name)

    def parse(command: str) -> tuple[str, dict[str, Any]]:
        words = shlex.split(command)
        verb, *arguments = words[3:] if words[:3] == ["python", "-m", "dpdm"] else words[1:]
        with verbs.make_context("dpdm", [verb, *arguments]) as group:
            name, found, rest = verbs.resolve_command(group, [verb, *arguments])
            return name, found.make_context(name, rest, parent=group).params

    return parse


@pytest.fixture(scope="session")
def run_python():
    """`run_python(*arguments) -> CompletedProcess`: a fresh interpreter in the repository's root."""

    def run(*arguments: Any) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )

    return run
