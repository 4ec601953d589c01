"""The group of all verbs, and their common arguments and options."""

import os
import re

import click

from dpdm import __version__
from dpdm.errors import UserError

STUDIES, RUNS, MORE = "Studies", "One run by hand", "Your own methods, and several results"
WORKFLOW = "For the workflow (Snakemake calls these)"
SECTIONS = (STUDIES, RUNS, MORE, WORKFLOW)
COMPLETION = 'Completion: put eval "$(_DPDM_COMPLETE=bash_source dpdm)" into ~/.bashrc (or zsh_source, fish_source).'


class _Path(click.Path):
    """A path that is not empty; an unset shell variable gives an empty path."""

    def convert(self, value, param, ctx):
        if not value:
            self.fail("is empty; name a file or folder, or leave the option out", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=str)
MOST_THREADS = 1024
_PLACE = re.compile(r"^(datasets|methods|evaluation|tables)\.", re.M)  # begins a line about the study, without its name


class Verb(click.Command):
    """A command with a section in the help of `dpdm`, and the option --threads."""

    def __init__(self, *args, section: str = WORKFLOW, **kwargs):
        super().__init__(*args, **kwargs)
        self.section = section
        count, help = click.IntRange(1, MOST_THREADS), "Threads that this command may use."
        self.params.append(click.Option(["--threads"], type=count, default=1, show_default=True, help=help))

    def invoke(self, ctx: click.Context):
        """Runs the verb on its number of threads."""
        _limit_threads(ctx.params.pop("threads"))
        try:
            return super().invoke(ctx)
        except UserError as error:
            if not isinstance(ctx.obj, str):
                raise
            raise UserError(_PLACE.sub(lambda place: f"{ctx.obj}: {place[0]}", str(error))) from error


class Verbs(click.Group):
    """All verbs, listed by section in the order of their definition."""

    command_class = Verb

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Not sorted by name."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One list per section."""
        width = max(map(len, self.commands))
        for title in SECTIONS:
            listed = [(name, verb) for name, verb in self.commands.items() if getattr(verb, "section", "") == title]
            rows = [(name.ljust(width), verb.get_short_help_str(limit=200)) for name, verb in listed]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(
    cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, epilog=COMPLETION
)
@click.version_option(__version__, prog_name="dpdm")
def verbs() -> None:
    """Differentially private image generation, measured.

    STUDY is a study file (config/digits.yaml), a shipped study by its name (digits), or the results folder of a study
    (results/digits). A run is written DATASET/METHOD/EPSILON/SEED, a synthetic set adds /SAMPLER:
    digits/dpdm/10/0/accuracy. `dpdm VERB --help` explains a verb.
    """


def study_argument(required: bool = True, writes: bool = False):
    """STUDY: the verb gets it as `study` and `layout`; the context's `obj` is the word as the user wrote it.

    With `writes`, kept results are refused.
    """

    def opened(ctx: click.Context, _: click.Parameter, named: str | None):
        from dpdm.study import open_study, refuse_kept

        ctx.obj = named
        study, layout = open_study(named) if named is not None else (None, None)
        if writes:
            refuse_kept(layout)
        ctx.params["layout"] = layout
        return study

    text = "A study file (YAML; several: with commas), a shipped study, or the results folder of a study."
    return click.argument("study", required=required, callback=opened, help=text)


def dataset_argument():
    """DATASET: one of the study's data sets."""

    def found(ctx: click.Context, _: click.Parameter, name: str) -> str:
        from dpdm.study import find_dataset

        return find_dataset(ctx.params["study"], name)

    return click.argument("dataset", callback=found, help="A data set of the study.")


def set_option():
    """--set KEY=VALUE, as `changes`."""
    text = "Change a parameter: --set dp.steps=20."
    return click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help=text)


def out_option(text: str):
    """--out DIR."""
    return click.option("--out", type=PATH, metavar="DIR", help=text)


def _limit_threads(count: int) -> None:
    """Limits torch, OpenMP and BLAS to `count` threads, both loaded libraries and later ones.

    On two cores, two jobs of two threads each at once were ten times slower than one after the other.
    """
    import threadpoolctl

    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        os.environ[f"{library}_NUM_THREADS"] = str(count)
    threadpoolctl.threadpool_limits(count)
