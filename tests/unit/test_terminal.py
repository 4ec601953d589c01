"""What the terminal shows of a run of the workflow; the records are as Snakemake's logger makes them."""

import io
import logging
from types import SimpleNamespace

import pytest

from dpdm.cli import terminal
from dpdm.progress import Log

TRAIN = {"dataset": "digits", "method": "dpdm", "epsilon": "10", "seed": "0"}


@pytest.fixture
def said():
    return io.StringIO()


@pytest.fixture
def make(said):
    """`make(dry)`: the handler, in the place of one that writes messages to `said`."""

    def handler(dry: bool = False) -> terminal.Terminal:
        return terminal.Terminal(logging.StreamHandler(said), dry)

    return handler


def record(
    event: str | None, message: str = "", level: int = logging.INFO, at: float = 0.0, **extra
) -> logging.LogRecord:
    one = logging.LogRecord("snakemake", level, "f.py", 1, message, (), None)
    one.created = at
    one.__dict__.update({"event": event} if event else {}, **extra)
    return one


def plan(**rules: int) -> logging.LogRecord:
    return record("run_info", "Job stats:", stats={**rules, "total": sum(rules.values())})


def announced(jobid: int, rule: str, places=None, at: float = 0.0, log=(), benchmark=None) -> logging.LogRecord:
    return record(
        "job_info", at=at, jobid=jobid, rule_name=rule, wildcards=places or {}, log=list(log), benchmark=benchmark
    )


def finished(jobid: int, at: float) -> logging.LogRecord:
    return record("job_finished", at=at, job_id=jobid)


def failed(jobid: int, log=(), message=None, **aux) -> logging.LogRecord:
    return record(
        "job_error", level=logging.ERROR, jobid=jobid, rule_name="train", rule_msg=message, log=list(log), aux=aux
    )


def send(handler, *records) -> None:
    for one in records:
        handler.handle(one)
    handler.close()


def test_a_finished_job_is_one_line_with_its_place_seconds_number_and_time_left(make, said):
    send(
        make(), plan(train=3, audit=1), announced(7, "train", TRAIN, at=100), finished(7, at=112),
        announced(8, "train", {**TRAIN, "seed": "1"}, at=112), finished(8, at=132),
    )  # fmt: skip
    lines = said.getvalue().splitlines()
    assert lines[0] == "Job stats:"
    assert lines[1] == "1 of 4  train digits/dpdm/10/0: 12 s, about 36 s left"
    # One training is left, of 16 s in the mean, and an audit, of which nothing is known but the mean of all jobs.
    assert lines[2] == "2 of 4  train digits/dpdm/10/1: 20 s, about 32 s left"
    assert len(lines) == 3


def test_the_time_left_is_shared_by_the_jobs_that_run_at_once(make, said):
    first, second = (announced(n, "train", {**TRAIN, "seed": str(n)}, at=0) for n in (0, 1))
    send(make(), plan(train=4), first, second, finished(0, at=60), finished(1, at=60))
    assert said.getvalue().splitlines()[-1].endswith(": 60 s, about 60 s left")  # 120 s by two at once


def test_the_last_job_has_nothing_left(make, said):
    send(make(), plan(all=1), announced(0, "all"), finished(0, at=0))
    assert said.getvalue().splitlines()[-1] == "1 of 1  all: 0 s"


def test_a_job_on_a_cluster_took_what_its_benchmark_says_not_the_queue(make, said, tmp_path):
    file = tmp_path / "train.tsv"
    file.write_text("s\tmax_rss\n90.4\t100\n")
    send(make(), plan(train=1), announced(0, "train", TRAIN, benchmark=str(file)), finished(0, at=7200))
    assert "train digits/dpdm/10/0: 90 s" in said.getvalue()


def test_a_failed_job_shows_the_end_of_its_log_and_where_it_is(make, said, tmp_path):
    log = tmp_path / "train.log"
    log.write_text("".join(f"line {n}\n" for n in range(500)) + "error: no such file\n")
    send(make(), announced(0, "train", TRAIN, log=[log]), failed(0, [str(log)], "timed out", external_jobid="77"))
    text = said.getvalue()
    for part in ("error", "train digits/dpdm/10/0", str(log), "error: no such file", "timed out", "external_jobid: 77"):
        assert part in text, part
    assert "line 499" in text
    assert "line 480" not in text


def test_a_failed_job_whose_log_cannot_be_read_says_so(make, said, tmp_path):
    empty = tmp_path / "empty.log"
    empty.write_text("\n")
    send(make(), announced(0, "train", TRAIN), failed(0, [str(tmp_path / "none.log"), str(empty)]))
    assert "none.log:\n    (No such file or directory)" in said.getvalue()
    assert "empty.log:\n    (empty)" in said.getvalue()


def test_the_exit_status_of_a_command_is_shown_without_the_command(make, said):
    text = "RuleException:\nCalledProcessError in file \"f.smk\", line 9:\nCommand 'export PATH=x; python a\nb' "
    send(make(), record(None, text + "died with <Signals.SIGKILL: 9>.\n", logging.ERROR))
    assert "SIGKILL" in said.getvalue()
    assert "export" not in said.getvalue()


def test_a_full_disk_names_itself_although_the_log_is_empty(make, said, tmp_path, monkeypatch):
    log = tmp_path / "train.log"
    log.touch()
    monkeypatch.setattr(terminal.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    send(make(), announced(0, "train", TRAIN, log=[log]), failed(0, [str(log)]))
    assert f"the disk of {log} is full" in said.getvalue()


def test_the_exit_status_of_a_full_disk_is_put_into_words(make, said):
    text = (
        "RuleException:\nCalledProcessError in file \"f.smk\", line 9:\nCommand 'x' returned non-zero exit status {}.\n"
    )
    for status in (1, terminal.NO_SPACE):
        send(make(), record(None, text.format(status), logging.ERROR))
    assert ["space" in line for line in said.getvalue().splitlines()] == [False, True]


def test_a_failed_group_shows_the_end_of_the_clusters_log(make, said, tmp_path):
    log = tmp_path / "77.log"
    log.write_text("slurmstepd: error: oom-kill\n")
    send(make(), record("group_error", level=logging.ERROR, groupid="g1", aux_logs=[str(log)], job_error_info=[]))
    for part in ("g1", str(log), "oom-kill"):
        assert part in said.getvalue()


def test_warnings_errors_and_what_is_unknown_pass_and_commands_do_not(make, said):
    send(
        make(), record(None, "Select jobs to execute..."), record(None, "Building DAG of jobs..."),
        record(None, "Job 3 has been submitted with SLURM jobid 77 (log: x.log)."),
        record("shellcmd", "Shell command: python"), record("resources_info", "Provided cores: 1"),
        record("workflow_started", "SNAKEMAKE"), record(None, "Building DAG in vain", logging.WARNING),
        record(None, "Trying to restart job 3."), record("error", "the study was refused", logging.ERROR),
        record("of_a_later_version", "something"),
    )  # fmt: skip
    assert said.getvalue().splitlines() == [
        "Building DAG in vain", "Trying to restart job 3.", "the study was refused", "something",
    ]  # fmt: skip


def test_a_message_that_is_repeated_is_shown_once(make, said):
    stop = record(None, "Will exit after finishing currently running jobs (scheduler).")
    send(make(), stop, stop, plan(train=1), announced(7, "train", TRAIN), stop, finished(7, at=1), stop)
    assert said.getvalue().count("Will exit") == 1


def test_a_fault_in_a_line_does_not_end_the_run(make, said, capsys):
    handler = make()
    handler.handle(record("run_info", "Job stats:", stats=None, at=0))
    handler.handle(record("job_info"))  # without any of its facts
    send(handler, record("job_finished", "Finished jobid: 9", job_id=9))
    assert "AttributeError" in capsys.readouterr().err
    assert "Finished jobid: 9" in said.getvalue()


def test_a_dry_run_has_a_line_for_jobs_alike(make, said):
    runs = [
        {"dataset": "digits", "method": method, "epsilon": epsilon, "seed": seed}
        for method in ("dpdm", "pearl")
        for epsilon in ("10", "1", "inf")
        for seed in ("0", "1")
    ]
    odd = {"dataset": "digits", "method": "odd", "epsilon": "1", "seed": "0"}
    places = [*runs, odd]
    stats = plan(prepare=1, train=13, all=1)
    jobs = [announced(n, "train", place) for n, place in enumerate(places)]
    send(make(dry=True), stats, *jobs, announced(20, "all"), announced(21, "prepare", {"dataset": "digits"}), stats)
    lines = [line.split() for line in said.getvalue().splitlines()]
    assert lines[:5] == [
        ["Job", "stats:"], ["1", "prepare", "digits"], ["12", "train", "digits/{dpdm,pearl}/{1,10,inf}/{0,1}"],
        ["1", "train", "digits/odd/1/0"], ["1", "all"],
    ]  # fmt: skip
    assert "-p" in said.getvalue()


def test_jobs_that_are_no_full_grid_are_not_shown_as_one(make):
    places = [("digits", "dpdm", "1", "0"), ("digits", "dpdm", "10", "1")]
    jobs = [terminal.Job("train", place, None, None, 0.0) for place in places]
    assert [line.split()[-1] for line in terminal.listed(jobs)] == ["digits/dpdm/1/0", "digits/dpdm/10/1"]


def test_names_that_look_like_numbers_are_sorted_as_text_where_they_are_none():
    assert terminal.braces(["10", "2", "inf", "0.2"]) == "{0.2,2,10,inf}"
    assert terminal.braces(["b", "1.2.3", "."]) == "{.,1.2.3,b}"


def test_the_progress_of_running_jobs_is_read_from_their_logs(make, tmp_path, capsys):
    list(Log("train dpdm").track(range(5), 10))  # as the job itself writes it, before its end
    going, silent = tmp_path / "going.log", tmp_path / "silent.log"
    going.write_text(capsys.readouterr().err)
    silent.write_text("")
    handler = make()
    for number, log in enumerate((going, silent, tmp_path / "none.log")):
        handler.handle(announced(number, "train", {**TRAIN, "seed": str(number)}, log=[log]))
    assert handler.progress() == "running: train digits/dpdm/10/0 50%"
    handler.close()


def test_progress_is_a_line_only_when_it_changed(make, said, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "PROGRESS_EVERY", 0.0)
    handler = make()
    texts = iter(["", "running: a 10%", "running: a 10%", "running: a 20%", ""])

    def progress() -> str:
        try:
            return next(texts)
        except StopIteration:
            handler.close()
            return ""

    monkeypatch.setattr(handler, "progress", progress)
    handler._watch(record(None))
    assert said.getvalue().splitlines() == ["running: a 10%", "running: a 20%"]


# --- in the place of Snakemake's handler ------------------------------------------------------------------------


def shown(tmp_path, main: bool = True, **settings) -> tuple[logging.Logger, logging.FileHandler]:
    logger = logging.Logger("snakemake")
    stream, file = logging.StreamHandler(io.StringIO()), logging.FileHandler(tmp_path / "all.log")
    stream.name = "DefaultStreamHandler"
    file.addFilter(SimpleNamespace(filter=lambda record: True, printshellcmds=False))
    logger.addHandler(stream)
    logger.addHandler(file)
    options = {"printshellcmds": False, "verbose": False, "quiet": set(), "dryrun": False} | settings
    workflow = SimpleNamespace(output_settings=SimpleNamespace(**options), is_main_process=main)
    terminal.show(workflow, logger)
    terminal.show(workflow, logger)  # the workflow can be included twice
    return logger, file


def test_the_handler_takes_the_place_once_and_the_file_keeps_the_commands(tmp_path):
    logger, file = shown(tmp_path)
    assert [type(handler) for handler in logger.handlers] == [logging.FileHandler, terminal.Terminal]
    assert file.filters[0].printshellcmds


@pytest.mark.parametrize(
    "settings", [{"printshellcmds": True}, {"verbose": True}, {"quiet": {"rules"}}, {"main": False}], ids=str
)
def test_who_asks_for_more_or_less_gets_snakemakes_own_output(tmp_path, settings):
    logger, _ = shown(tmp_path, **settings)
    assert not [handler for handler in logger.handlers if isinstance(handler, terminal.Terminal)]
