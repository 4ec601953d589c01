"""Snakemake's output: one line per finished job, the progress of the others, and the end of a failed job's log.

The workflow replaces Snakemake's handler by `Terminal`. The log file below .snakemake/log has everything. Nothing of
Snakemake is imported, since a record names its event as text. Standard library only.
"""

import csv
import logging
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterable
from math import prod
from statistics import fmean
from typing import Any, NamedTuple

from dpdm.progress import duration

PROGRESS_EVERY = 60.0  # seconds
LITTLE = 100_000  # free bytes of a disk that counts as full
NO_SPACE = 74  # exit status of a job on a full disk: EX_IOERR of sysexits.h
TAIL = 10  # lines of a failed job's log
STEPS = re.compile(r": (\d+)/(\d+), \d+ s$")  # what dpdm.progress.Log writes
NUMBER = re.compile(r"inf|\d+(\.\d+)?")
# Snakemake's messages about itself, which need no action.
CHATTER = re.compile(
    "Assuming unrestricted|Building DAG|Using shell|Rules claiming|Conda environments: ignored|Select jobs|"
    "Singularity containers: ignored|Group jobs: inactive|(Job|Submitted) .*(SLURM|external) jobid"
)
# Its message about a failed command, which repeats the command.
EXIT = re.compile(r"RuleException:\nCalledProcessError in file .*Command '.*' (returned .*|died with .*)", re.DOTALL)
HIDDEN = {"workflow_started", "resources_info", "job_started", "group_info", "shellcmd", "progress"}  # events


class Job(NamedTuple):
    """A job that was announced."""

    rule: str
    place: tuple[str, ...]  # the values of its wildcards
    log: str | None
    benchmark: str | None
    started: float  # seconds since the epoch

    @property
    def name(self) -> str:
        """The rule and its coordinates: `train digits/dpdm/10/0`."""
        return f"{self.rule} {'/'.join(self.place)}".rstrip()


def show(workflow: Any, logger: logging.Logger) -> None:
    """Makes Snakemake's output on the terminal short, unless its options ask for more or less of it."""
    settings = workflow.output_settings
    short = workflow.is_main_process and not (settings.printshellcmds or settings.verbose or settings.quiet)
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            for each in handler.filters:
                each.printshellcmds = True
        elif handler.name == "DefaultStreamHandler" and not isinstance(handler, Terminal) and short:
            logger.removeHandler(handler)
            logger.addHandler(Terminal(handler, settings.dryrun))


class Terminal(logging.Handler):
    """Writes through Snakemake's handler `former`, but one line per job; for a `dry` run it counts the jobs."""

    def __init__(self, former: logging.Handler, dry: bool = False):
        super().__init__(former.level)
        self.name = former.name
        self.former, self.dry = former, dry
        self.jobs: dict[int, Job] = {}  # announced and not finished
        self.planned: Counter[str] = Counter()  # jobs by rule, and their total
        self.seconds: dict[str, list[float]] = {}  # of the finished jobs, by rule
        self.begun: float | None = None  # the first job's start
        self._said = self._last = ""
        self._over = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, or keeps the parts that later lines need."""
        try:
            self._show(record)
        except BrokenPipeError:
            raise
        except Exception:  # an error here must not end the run
            self.handleError(record)

    def _show(self, record: logging.LogRecord) -> None:
        event = str(getattr(record, "event", None) or "")
        if event == "job_info":
            self._announced(record)
        elif event == "job_finished" and record.job_id in self.jobs:
            self._line(self._finished(record), record)
        elif event == "job_error":
            job = self.jobs.get(record.jobid)
            self._line(self._failed(record, job.name if job else record.rule_name), record)
        elif event == "group_error":
            self._line(self._failed(record, f"group {record.groupid}"), record)
        elif event == "run_info":
            self.planned = Counter(record.stats)
            if self.jobs and self.dry:
                rules = list(self.planned)
                lines = listed(sorted(self.jobs.values(), key=lambda job: (rules.index(job.rule), job.place)))
                self._line("\n".join(lines) + "\n\nWith -p: every job, its reason and command.", record)
            else:
                self.former.handle(record)
        elif ended := EXIT.match(record.getMessage()):
            full = " No space is left on a disk, or in a quota." if f"status {NO_SPACE}." in ended[1] else ""
            self._line(f"error: the command of a job {ended[1].strip()}{full}", record)
        elif event not in HIDDEN and not (record.levelno == logging.INFO and CHATTER.match(record.getMessage())):
            if event or record.getMessage() != self._last:  # when asked to stop, Snakemake repeats this every second
                self.former.handle(record)
            self._last = record.getMessage()

    def close(self) -> None:
        """Ends the lines of progress."""
        self._over.set()
        super().close()

    def _line(self, text: str, record: logging.LogRecord) -> None:
        shown = logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, (), None)
        self.former.handle(shown)

    def _announced(self, record: logging.LogRecord) -> None:
        if self.begun is None:
            self.begun = record.created
            if not self.dry:
                threading.Thread(target=self._watch, args=(record,), daemon=True).start()
        place, log = tuple(record.wildcards.values()), next(iter(record.log), None)
        self.jobs[record.jobid] = Job(record.rule_name, place, log, record.benchmark, record.created)

    def _finished(self, record: logging.LogRecord) -> str:
        job = self.jobs.pop(record.job_id)
        seconds = measured(job.benchmark) or record.created - job.started
        self.seconds.setdefault(job.rule, []).append(seconds)
        done = sum(map(len, self.seconds.values()))
        total = self.planned["total"]
        left = self.left(record.created)
        about = f", about {duration(left)} left" if done < total else ""
        return f"{done:{len(str(total))}} of {total}  {job.name}: {duration(seconds)}{about}"

    def left(self, now: float) -> float:
        """Seconds until the end, from the mean of each rule's finished jobs (of all jobs, if the rule has none)."""
        every = [seconds for finished in self.seconds.values() for seconds in finished]
        missing = 0.0
        for rule in self.planned.keys() - {"total"}:
            finished = self.seconds.get(rule, [])
            missing += (self.planned[rule] - len(finished)) * fmean(finished or every)
        at_once = sum(every) / max(now - self.begun, 1e-3)  # jobs
        return missing / max(at_once, 1e-3)

    def _failed(self, record: logging.LogRecord, what: str) -> str:
        """The lines for a failed job, or for a failed group (one job of a cluster), which comes before its jobs."""
        logs = getattr(record, "aux_logs", None) or getattr(record, "log", [])
        facts = {"message": getattr(record, "rule_msg", None), **getattr(record, "aux", {})}
        lines = [f"error: {what} failed", *(f"    {key}: {value}" for key, value in facts.items() if value)]
        for log in logs:
            lines += [f"  the end of {log}:", *(f"    {line}" for line in tail(log))]
            folder = os.path.dirname(log) or "."
            if os.path.isdir(folder) and shutil.disk_usage(folder).free < LITTLE:
                lines.append(f"  the disk of {log} is full: free some space, and run the same command again")
        return "\n".join(lines)

    def _watch(self, record: logging.LogRecord) -> None:
        while not self._over.wait(PROGRESS_EVERY):
            text = self.progress()
            if text not in ("", self._said):
                self._said = text
                self._line(text, record)

    def progress(self) -> str:
        """A line about the running jobs that report their progress."""
        parts = []
        for job in list(self.jobs.values()):
            if job.log and os.path.exists(job.log) and (steps := STEPS.search(tail(job.log)[-1])):
                parts.append(f"{job.name} {int(steps[1]) / int(steps[2]):.0%}")
        more = f" and {len(parts) - 4} more" if len(parts) > 4 else ""
        return f"running: {', '.join(parts[:4])}{more}" if parts else ""


def tail(path: str) -> list[str]:
    """The last lines of a log, or one line that says why there are none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 8192))
            lines = file.read().decode(errors="replace").strip("\n").splitlines()
    except OSError as error:
        return [f"({error.strerror})"]
    return lines[-TAIL:] or ["(empty)"]


def measured(path: str | None) -> float | None:
    """Seconds of a job by Snakemake's benchmark, without the time in a cluster's queue; None if there is none."""
    try:
        with open(path or os.devnull) as file:
            return float(next(csv.DictReader(file, delimiter="\t"))["s"])
    except (OSError, StopIteration, KeyError, ValueError):
        return None


def listed(jobs: Iterable[Job]) -> list[str]:
    """One line, with their number, for jobs of a rule on a data set that form a full grid."""
    runs: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for job in jobs:
        runs.setdefault((job.rule, *job.place[:2]), set()).add(job.place[2:])
    alike: dict[tuple, list[str]] = {}
    for (rule, *head), rests in runs.items():
        full = len(rests) == prod(len(set(values)) for values in zip(*rests, strict=True))
        for part in [rests] if full else [{rest} for rest in sorted(rests)]:
            alike.setdefault((rule, *head[:1], frozenset(part)), []).extend(head[1:])
    lines = []
    for (rule, *dataset, rests), methods in alike.items():
        parts = [*dataset, *([braces(methods)] if methods else []), *map(braces, zip(*rests, strict=True))]
        lines.append(f"{len(rests) * max(1, len(methods)):5}  {rule} {'/'.join(parts)}".rstrip())
    return lines


def braces(values: Iterable[str]) -> str:
    """Several values as a shell writes them: {1,10}."""
    several = sorted(set(values), key=lambda text: (0, float(text), "") if NUMBER.fullmatch(text) else (1, 0.0, text))
    return several[0] if len(several) == 1 else f"{{{','.join(several)}}}"
