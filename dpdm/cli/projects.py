"""Verbs around studies: what there is to choose from, and a new method."""

import click

from dpdm.cli._verbs import PATH, STUDIES, verbs

HEADERS = {
    "methods": ("method", "what it is", "what it releases", "cost", "published epsilon", "impl"),
    "datasets": ("source", "what it is", "keys"),
    "samplers": ("method", "sampler", "what it is", "keys"),
    "studies": ("study", "what it is", "runs", "data sets", "methods"),
}


@verbs.command("list", section=STUDIES)
@click.argument("what", type=click.Choice(list(HEADERS)), help="What to list.")
def list_(what: str) -> None:
    """List what there is: methods, datasets, samplers or studies.

    Of a method: what it is, what it releases, its cost, and the status of the epsilon that its paper states.
    """
    from tabulate import tabulate

    from dpdm import catalog

    print(tabulate(getattr(catalog, what)(), HEADERS[what], tablefmt="plain", disable_numparse=True))


@verbs.command("new", section=STUDIES)
@click.argument("kind", type=click.Choice(["method"]), help="What to begin.")
@click.argument("name", help="Its name in a study.")
@click.option("--out", type=PATH, metavar="FILE", help="Its file. Default: baselines/NAME.py, or NAME.py.")
def new(kind: str, name: str, out: str | None) -> None:
    """Write a minimal method that works, and print the entry of a study for it."""
    from dpdm.scaffold import new_method

    path, entry = new_method(name, out)
    print(f"wrote {path}; put this into a study, and try it by `dpdm check STUDY`:\n\n{entry}", end="")
