"""Verbs around studies: what there is to choose from, a new method, and several studies in one table."""

import click

from dpdm.cli._verbs import PATH, STUDIES, verbs

HEADERS = {
    "methods": ("method", "what it is", "what it releases", "cost", "published epsilon", "impl"),
    "datasets": ("source", "what it is", "keys"),
    "samplers": ("method", "sampler", "what it is", "keys"),
    "metrics": ("metric", "extractor", "better", "what it is"),
    "studies": ("study", "what it is", "runs", "data sets", "methods"),
}


@verbs.command("list", section=STUDIES)
@click.argument("what", type=click.Choice(list(HEADERS)), help="What to list.")
def list_(what: str) -> None:
    """List what there is: methods, datasets, samplers, metrics or studies.

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


@verbs.command("compare", section=STUDIES)
@click.argument("results", nargs=-1, required=True, type=PATH, help="Results folders, each with a metrics.csv.")
@click.option("--out", type=PATH, metavar="FILE", help="An HTML page to write as well.")
def compare(results: tuple[str, ...], out: str | None) -> None:
    """Print one table over several results folders; every row names its study and commit.

    A column has one protocol and one extractor. Distances are left out where they were measured by different extractors
    or from different numbers of images.
    """
    from dpdm import artifacts
    from dpdm.report import compare as comparing
    from dpdm.report.tables import to_markdown

    table, page = comparing.compare(results)
    print(to_markdown(table), end="")
    if out:
        artifacts.write_text(out, page)
        print(f"\npage: {out}")
