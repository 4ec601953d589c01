"""What a callback leaves behind is found, wherever it is; what it builds once, or only reads, is not."""

import contextlib
import csv
import functools
import io
import itertools
import json
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import tqdm
from refusals import refuses
from torch import nn

from dpdm.privacy import traces
from dpdm.privacy.traces import state_of, without_traces
from dpdm.progress import Log

RECORDS = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))


def tried(function):
    return without_traces(lambda i: function(RECORDS[i]), function)


def in_a_list():
    kept = []
    return lambda x: kept.append(x)


def in_a_number():
    def call(x):
        call.last = float(x.sum())

    return call


def in_a_nonlocal():
    total = 0.0

    def call(x):
        nonlocal total
        total += float(x.sum())

    return call


def in_place():
    kept = torch.zeros(3)
    return lambda x: kept.data.copy_(x)


def in_an_array():
    kept = np.zeros(3)

    def call(x):
        kept[:] = x.numpy()

    return call


def by_label():
    first = {}
    return lambda x: first.setdefault(float(x[0]), x)


def in_a_cache():
    @functools.lru_cache(maxsize=1)
    def shown(value):
        return value

    return lambda x: shown(float(x[0]))


def in_a_gradient():
    net = nn.Linear(3, 1)
    return lambda x: net(x).sum().backward()


def in_a_trained_network():
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def call(x):
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def by_a_hook():
    net, seen = nn.Linear(3, 1), {}
    net.register_forward_hook(lambda module, inputs, output: seen.update(last=output.detach()))
    return lambda x: net(x)


def in_a_nested_attribute():
    net = nn.Linear(3, 1)
    net.facts = {"deep": {}}

    def call(x):
        net.facts["deep"]["last"] = x

    return call


def in_slots():
    class Slots:
        __slots__ = ("kept",)

    slots = Slots()

    def call(x):
        slots.kept = x

    return call


class Shared:
    """An attribute of the class, not of an object."""

    total = 0.0

    @staticmethod
    def add(x):
        Shared.total += float(x.sum())


def in_a_class():
    return lambda x: Shared.add(x)


def in_a_generator():
    rng = np.random.default_rng(0)
    return lambda x: rng.random() if x.sum() else None


def in_pythons_generator():
    rng = random.Random(0)
    return lambda x: rng.random()


def in_torchs_generator():
    rng = torch.Generator()
    return lambda x: torch.rand(1, generator=rng)


def in_a_counter():
    count = itertools.count()
    return lambda x: next(count)


def in_an_iterator():
    def numbers():
        total = 0.0
        while True:
            total += yield total

    sums = numbers()
    next(sums)
    return lambda x: sums.send(float(x.sum()))


def in_the_curve():
    log = Log("test", quiet=True)
    return lambda x: log.record(0, loss=float(x.sum()))


def in_a_partial():
    return functools.partial(lambda kept, x: kept.append(float(x.sum())), [])


def in_a_method():
    class Loss:
        def __init__(self):
            self.seen = []

        def __call__(self, x):
            self.seen.append(x)

    return Loss()


def in_a_numpy_number():
    total = np.float32(0)

    def call(x):
        nonlocal total
        total += x.numpy().sum()

    return call


def in_an_attribute_of_a_weight():
    weight = nn.Parameter(torch.ones(3))

    def call(x):
        weight.seen = x

    return call


def by_a_hook_of_a_tensor():
    weight, kept = nn.Parameter(torch.ones(3)), []
    weight.register_hook(kept.append)
    return lambda x: torch.autograd.grad((weight * x).sum(), weight)


def in_a_retained_gradient():
    made = nn.Parameter(torch.ones(3)) * 1
    made.retain_grad()
    return lambda x: (made * x).sum().backward(retain_graph=True)


def in_an_attribute_of_a_container():
    class Box(dict):
        """With an attribute."""

    box = Box()

    def call(x):
        box.last = x

    return call


def in_bytes():
    kept, file = bytearray(3), io.BytesIO()

    def call(x):
        kept[:] = bytes((255 * x).byte().tolist())
        file.seek(0)
        file.write(x.numpy().tobytes())

    return call


def in_a_nested_module():
    outer, inner = types.ModuleType("outer"), types.ModuleType("inner")
    outer.inner, inner.total = inner, 0.0
    namespace = {"outer": outer, "__name__": "made"}
    exec("def call(x):\n    outer.inner.total += float(x.sum())", namespace)
    return namespace["call"]


def in_a_value_that_cannot_be_read():
    """As vmap shows it: its content cannot be looked at outside."""
    kept = {}

    def call(x):
        torch.func.vmap(lambda row: kept.update(last=row) or row)(x[:, None])

    return call


def in_a_data_frame():
    frame = pd.DataFrame({"kind": ["none"], "loss": [0.0]})

    def call(x):
        frame.loc[0, "loss"] = float(x.sum())

    return call


def in_a_series_of_objects():
    series = pd.Series(["none"])

    def call(x):
        series.iloc[0] = f"{float(x.sum())}"

    return call


def in_a_csv_file():
    writer = csv.writer(io.TextIOWrapper(io.BytesIO()))
    return lambda x: writer.writerow(x.tolist())


def in_shared_memory():
    shared = multiprocessing.Value("d", 0.0)

    def call(x):
        shared.value = float(x.sum())

    return call


def in_a_module_imported_inside():
    package, module = types.ModuleType("kept_package"), types.ModuleType("kept_package.tracker")
    module.LOSSES, package.tracker = [], module
    sys.modules |= {"kept_package": package, "kept_package.tracker": module}
    namespace = {"__name__": "kept_package.losses", "__package__": "kept_package"}
    exec("def call(x):\n    from .tracker import LOSSES\n    LOSSES.append(float(x.sum()))", namespace)
    return namespace["call"]


LAST = {}


def by_a_hook_of_all_modules():
    net = nn.Linear(3, 1)
    handle = nn.modules.module.register_module_forward_hook(lambda module, x, out: LAST.update(out=float(out)))

    def call(x):
        with torch.no_grad():
            return net(x)

    call.remove = handle.remove
    return call


TRACES = [
    in_a_list, in_a_number, in_a_nonlocal, in_place, in_an_array, by_label, in_a_cache, in_a_gradient,
    in_a_trained_network, by_a_hook, in_a_nested_attribute, in_slots, in_a_class, in_a_generator, in_pythons_generator,
    in_torchs_generator, in_a_counter, in_an_iterator, in_the_curve, in_a_partial, in_a_method, in_a_numpy_number,
    in_an_attribute_of_a_weight, by_a_hook_of_a_tensor, in_a_retained_gradient, in_an_attribute_of_a_container,
    in_bytes, in_a_nested_module, in_a_value_that_cannot_be_read, in_a_data_frame, in_a_series_of_objects,
    in_a_csv_file, in_shared_memory, in_a_module_imported_inside, by_a_hook_of_all_modules,
]  # fmt: skip


@pytest.mark.parametrize("make", TRACES)
def test_what_is_kept_is_found(make):
    call = make()
    try:
        with refuses("remembers records", "outside the ledger"):
            tried(call)
    finally:
        getattr(call, "remove", int)()


def test_the_search_ends_at_the_last_object_or_with_a_refusal(monkeypatch):
    """Where it once ended after 10,000, without a word."""
    public, names, seen = [(torch.zeros(1), i) for i in range(5_100)], dict.fromkeys(range(200_000), ""), {"deep": [[]]}
    with refuses("remembers records", "seen['deep'][0]"):
        tried(lambda x: (public, names, seen["deep"][0].append(x)))
    monkeypatch.setattr(traces, "REACH", 1_000)
    assert len(tried(lambda x: (names, x))) == 3
    same = [[1.0]] * 2_000
    for many in (public, same):
        with refuses("1,000 objects", "tensor"):
            tried(lambda x, many=many: (many, x))


def test_what_changed_is_named():
    net = nn.Sequential(nn.Linear(3, 1))
    with refuses("net._modules['0']._parameters['weight'].grad"):
        tried(lambda x: net(x).sum().backward())


def written(tmp_path):
    return lambda x: np.save(tmp_path / "kept.npy", x.numpy())


def opened(tmp_path):
    file = (tmp_path / "log").open("w")
    return lambda x: file.write(json.dumps(x.tolist()))


def saved(tmp_path):
    return lambda x: torch.save(x, tmp_path / "kept.pt")


def printed(tmp_path):
    return lambda x: print(float(x.sum()))


def written_by_its_number(tmp_path):
    number = os.open(tmp_path / "numbered", os.O_CREAT | os.O_WRONLY)
    return lambda x: os.write(number, x.numpy().tobytes())


def logged(tmp_path):
    logging.getLogger("dpdm.test").addHandler(logging.FileHandler(tmp_path / "kept.log"))
    return lambda x: logging.getLogger("dpdm.test").warning("%s", x)


def given_to_a_program(tmp_path):
    return lambda x: subprocess.run(["true", str(x.tolist())], check=True)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (written, "kept.npy"),
        (saved, "kept.pt"),
        (opened, "file"),
        (printed, "standard output"),
        (written_by_its_number, "writes to file"),
        (logged, "kept.log"),
        (given_to_a_program, "subprocess"),
    ],
)
def test_what_is_written_is_found(make, where, tmp_path):
    try:
        with refuses(where, "outside the ledger"):
            tried(make(tmp_path))
    finally:
        logging.getLogger("dpdm.test").handlers.clear()


def test_what_is_only_read_or_built_once_passes(tmp_path):
    net, built, order = nn.Linear(3, 1), {}, []
    (tmp_path / "x").write_text("1")
    shown = functools.cache(lambda kind: torch.ones(3))

    def call(x):
        built.setdefault("ones", torch.ones(3))
        with contextlib.suppress(ValueError):
            order.remove(1)
        return net(x + built["ones"] + shown("ones")).detach() * float((tmp_path / "x").read_text()), np.nan

    first, other, again = tried(call)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_what_only_looks_like_a_trace_passes(tmp_path, monkeypatch):
    """A table that is read, a module that is imported, a hook that keeps nothing, and what goes to standard error."""
    table, constants = pd.DataFrame({"kind": ["a", "b"], "weight": [1.0, 2.0]}), {(1, 2): 3.0, (2, 1): 4.0}
    logger, errors = logging.Logger("test"), (tmp_path / "errors").open("w")
    monkeypatch.setattr(sys, "stderr", errors)
    logger.addHandler(logging.StreamHandler())
    handle = nn.modules.module.register_module_forward_hook(lambda module, x, out: None)

    def call(x):
        import colorsys

        logger.warning("a call")
        os.write(2, b"")
        weight = table.set_index("kind").loc["a", "weight"] + table["weight"].mean() + table.iloc[0, 1]
        return nn.Identity()(x) * weight * constants[1, 2] * colorsys.ONE_THIRD

    with errors, handle:
        assert len(tried(call)) == 3


def test_a_library_may_change_its_own_globals(monkeypatch):
    """The clock of a progress bar once looked like a memory."""
    log, ticks = Log("test"), itertools.count()

    def tick():
        monkeypatch.setattr("tqdm.tqdm.monitor", next(ticks), raising=False)

    call = without_traces(lambda i: tick() or RECORDS[i] * 2, lambda x: (log, tqdm.tqdm, x))
    assert len(call) == 3
    thread = threading.Thread()
    assert without_traces(lambda i: setattr(thread, "woken", i), lambda: thread) == [None] * 3


def test_the_package_of_a_callback_is_no_library_wherever_it_is(monkeypatch):
    installed = types.ModuleType("installed")
    installed.__file__ = f"{Path(torch.__file__).parents[1]}/installed/__init__.py"
    monkeypatch.setitem(sys.modules, "installed", installed)
    exec("total = 0.0\ndef call(x):\n    global total\n    total += float(x.sum())", vars(installed))
    for root in (installed.call, functools.partial(installed.call)):
        with refuses("total"):
            tried(root)
    assert (
        len(without_traces(lambda i: installed.call(RECORDS[i]), lambda: installed.call)) == 3
    )  # a library's own affair


def test_an_unbound_name_and_a_proxy_are_passed_over():
    class Proxy:
        def __getattribute__(self, name):
            raise RuntimeError(name)

    proxy = Proxy()

    def call(x):
        return (x, proxy, later) if x is None else x

    assert len(tried(call)) == 3
    later = 0


def test_the_door_is_left_out():
    """What it holds changes: the private images are its own, and so is the noise."""
    from dpdm.privacy import Budget, Ledger

    ledger = Ledger(10, 1e-3, 1.0, "rdp")
    before = state_of(lambda: (ledger, Budget))
    ledger.failure = "changed"
    assert state_of(lambda: (ledger, Budget)) == before


def test_it_looks_only_while_a_callback_runs_and_only_at_its_thread(tmp_path):
    save, shown = torch.save, sys.stdout
    with traces._watched() as written:
        thread = threading.Thread(target=(tmp_path / "other").write_text, args=["free"])
        thread.start()
        thread.join()
        assert written == []
        (tmp_path / "own").write_text("seen")
    assert written == [str(tmp_path / "own")]
    (tmp_path / "later").write_text("free")
    assert written == [str(tmp_path / "own")]
    assert (torch.save, sys.stdout) == (save, shown)
