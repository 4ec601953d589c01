"""Sentences that the numbers of a study support, and what is wrong with it; none is written by hand."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from dpdm.config import DIRECT
from dpdm.report import tables
from dpdm.report.collect import RUN, SPENT, holes
from dpdm.report.published import best_table, epsilons_run
from dpdm.report.registry import Material
from dpdm.report.tables import FEW, MISSING, MetricColumn, Summary, distinguished, name_of

# Levels: do not use the numbers; use them with care; the best method by them; other findings.
WRONG, CAUTION, BEST, FINDING = "wrong", "caution", "best", "finding"
DIFFUSION = "dpdm.diffusion."  # these methods are compared with all others
SOUND = "sound"  # the status of a published epsilon that needs no comment
MARGIN = 0.5  # points that a stronger classifier may be below a weaker one on real images


class Verdict(NamedTuple):
    """One sentence and its level: WRONG, CAUTION, BEST or FINDING."""

    level: str
    text: str


def verdicts(material: Material) -> list[Verdict]:
    """What is wrong with a study, then what its numbers say, by data set and epsilon.

    Methods are compared by the image distance and every accuracy, over the seeds that both have (see `distinguished`).
    Below three seeds the sentences only say who is ahead.
    """
    cells = _cells(material)
    best, theirs = _leaders(cells), _against_published(material)
    for place in best.keys() & theirs.keys():
        text = theirs.pop(place)
        best[place] += f" {text[0].upper()}{text[1:]}"
    findings = [*_comparisons(material, cells), *_classifiers(material.metrics)]
    findings += [f"{_place(place)}: {text}" for place, text in theirs.items()]
    levels = {CAUTION: _disagreements(cells), BEST: best.values(), FINDING: findings}
    return [*_faults(material), *(Verdict(level, text) for level, texts in levels.items() for text in texts)]


def _faults(material: Material) -> Iterator[Verdict]:
    metrics, audits = tables.with_values(material.metrics), material.audits
    private = audits[audits["epsilon"] != "inf"].drop_duplicates(RUN)
    if failed := int((~private["passed"]).sum()):
        yield Verdict(WRONG, f"Accounting failed for {failed} of {len(private)} private runs: do not use them.")
    exceeded = private.loc[private["attack_exceeded"], ["dataset", "method", "epsilon"]]
    for dataset, method, epsilon in exceeded.drop_duplicates().itertuples(index=False):
        yield Verdict(WRONG, f"An attack on {method} on {dataset} proves more than the target ε = {epsilon}.")
    if missing := holes(material.study, material.metrics, audits):
        yield Verdict(CAUTION, f"{len(missing)} results are missing; their cells rest on fewer seeds or are empty.")
    if len(set(metrics["code"])) > 1:
        yield Verdict(CAUTION, "The results were made by several versions of the code.")
    trained = metrics[metrics["epsilon"] != ""]
    seeds = trained.groupby(["dataset", "method", "epsilon"])["seed"].nunique().max() if len(trained) else 0
    if 0 < seeds < FEW:
        text = f"Fewer than {FEW} seeds ({seeds}): the spread is unknown, and nobody can be said to win."
        yield Verdict(CAUTION, text)
    if len(metrics) and "fid" not in set(metrics["metric"]):
        yield Verdict(CAUTION, "No Inception FID was measured: no distance here compares with a published FID.")
    for dataset, rows in metrics[metrics["method"] == "real"].groupby("dataset", sort=False):
        real = rows.groupby("metric")["value"].mean()
        protocols = ", ".join(filter(None, rows["protocol"].unique()))
        for worse, better in itertools.pairwise(m for m in ("acc_logreg", "acc_mlp", "acc_cnn") if m in real):
            if real[better] < real[worse] - MARGIN:
                low, high = (f"{name_of(metric)} ({real[metric]:.1f} %)" for metric in (better, worse))
                text = f"On the real images of {dataset}, {low} is below {high}: protocol {protocols} is too short."
                yield Verdict(WRONG, text)
    for (dataset, metric), passing in tables.above_ceiling(metrics).items():
        named = ", ".join(f"{method} at ε = {tables.epsilon_label(e)}" for method, e in dict.fromkeys(passing))
        text = f"Above the real images of {dataset} by {name_of(metric)}, which are therefore no ceiling: {named}."
        yield Verdict(CAUTION, text)


_Set = tuple[str, str]  # method and sampler; "" is the sampler of a method's best set
_Place = tuple[str, str]  # data set and epsilon
_Scores = Mapping[_Set, Mapping[MetricColumn, Summary]]


class _Cell(NamedTuple):
    """The generators of one data set and finite epsilon, the measures that compare them, and their scores."""

    place: _Place
    marks: dict[str, str]  # of methods that learned from public data
    columns: list[MetricColumn]
    distances: list[MetricColumn]  # by every extractor
    found: _Scores  # of both

    def name(self, one: _Set) -> str:
        """The name of a set: its method, and its sampler if the method has several."""
        several = one[1] and sum(method == one[0] for method, _ in self.found) > 1
        return one[0] + f" ({one[1]})" * bool(several) + self.marks.get(one[0], "")


def _order(pair: tuple[_Set, _Set], column: MetricColumn, scores: _Scores) -> int:
    """1 if the first has better scores than the second, -1 if worse ones, 0 if they are not distinguished."""
    ours, theirs = (scores[one][column] for one in pair)
    return distinguished(ours, theirs, column) - distinguished(theirs, ours, column)


def _cells(material: Material) -> list[_Cell]:
    study, metrics = material.study, tables.with_values(material.metrics)
    known = tables.summaries(metrics, "dataset", "method", "sampler", "epsilon")
    cells = []
    for dataset in study.datasets:
        here = metrics[metrics["dataset"] == dataset]
        columns, distances = tables.score_columns(here), tables.distance_columns(here)
        generators = here[~here["epsilon"].isin(["", "inf"]) & (here["protocol"] != DIRECT)]
        for epsilon in sorted(generators["epsilon"].unique(), key=float):
            rows = generators[generators["epsilon"] == epsilon]
            found = {
                one: {c: known[*c.key, dataset, *one, epsilon] for c in {*columns, *distances}}
                for one in dict.fromkeys(zip(rows["method"], rows["sampler"], strict=True))
            }
            cells.append(_Cell((dataset, epsilon), tables.public_marks(rows), columns, distances, found))
    return cells


def _disagreements(cells: Sequence[_Cell]) -> Iterator[str]:
    """How many pairs of synthetic sets two extractors order oppositely, of those that both order, by data set."""
    orders: dict[tuple[str, MetricColumn, MetricColumn], list[bool]] = {}
    for cell in cells:
        for columns in itertools.combinations(cell.distances, 2):
            for pair in itertools.combinations(cell.found, 2):
                first, second = (_order(pair, column, cell.found) for column in columns)
                if first and second:
                    orders.setdefault((cell.place[0], *columns), []).append(first != second)
    for (dataset, *columns), opposite in orders.items():
        if any(opposite):
            pairs = f"{len(opposite)} pair{'s' * (len(opposite) > 1)} of synthetic sets"
            names = _measures(columns)
            yield f"{dataset}: of the {pairs} that {names} both distinguish, they order {sum(opposite)} oppositely."


def _leads(cells: Iterable[_Cell]) -> Iterator[tuple[_Place, MetricColumn, float, tuple[str, ...]]]:
    """The best generator with enough seeds, by place and measure (accuracies, and distances by every extractor).

    The values are its mean, its name, and the names of other methods with a set not distinguished from it.
    """
    for cell in cells:
        for column in dict.fromkeys([*cell.distances, *cell.columns]):
            if best := tables.leaders({one: of[column] for one, of in cell.found.items()}, column):
                others = dict.fromkeys(method for method, _ in best if method != best[0][0])
                names = cell.name(best[0]), *(cell.name((method, "")) for method in others)
                yield cell.place, column, cell.found[best[0]][column].mean, names


def leads_table(material: Material) -> pd.DataFrame:
    """By measure, data set and epsilon the best generator, then classifiers by DP-SGD, then the best published ones.

    "even" names the other methods with a set that cannot be distinguished from the best one.
    """
    rows: dict[str, dict[_Place, str]] = {}
    for place, column, mean, (name, *even) in _leads(_cells(material)):
        header = column.header if column.is_accuracy else f"{column.name} ↓"
        value = f"{mean:{'.1f' if column.is_accuracy else '.3g'}}"
        rows.setdefault(header, {})[place] = f"{value} {name}" + f"; even: {', '.join(even)}" * bool(even)
    places = list(dict.fromkeys(place for row in rows.values() for place in row))
    for (*place, metric, direct), best in highest(material.metrics, "metric", "direct").items():
        if direct:
            header = f"{name_of(metric)} accuracy %, DP-SGD on private images"
            rows.setdefault(header, {})[tuple(place)] = f"{best.value:.1f} {best.method}"
    quoted = _quoted(material)
    for place in places:
        for row in quoted.get(place, ()):
            text = f"{row['value']:g} {row['method']} ({row['classifier']}{row['claim']})"
            rows.setdefault(f"published, protocol {row['protocol']}", {})[place] = text
    frame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=places).dropna(how="all").fillna(MISSING)
    return frame.set_axis(list(map(_place, places)), axis=1)


def _leaders(cells: Iterable[_Cell]) -> dict[_Place, str]:
    """One sentence on all `_leads`, by data set and epsilon."""
    texts = {}
    for place, found in itertools.groupby(_leads(cells), key=lambda lead: lead[0]):
        led: dict[tuple[str, ...], dict[MetricColumn, float]] = {}
        for _, column, mean, names in found:
            led.setdefault(names, {})[column] = mean
        parts = (
            f"by {_measures(means)}: {first}, {joined(_value(column, mean) for column, mean in means.items())}"
            + (f" (not distinguished from {joined(others)})" if others else "")
            for (first, *others), means in led.items()
        )
        texts[place] = f"{_place(place)}: best generator {'; '.join(parts)}."
    return texts


def _comparisons(material: Material, cells: Iterable[_Cell]) -> Iterator[str]:
    """Compares the study's diffusion models (else its first method) with every other generator.

    For each measure, a method is compared by the best of its sets; if it has no rival, its sets are compared with each
    other. A warm start without DP-SGD is compared with sets of the same sampler, and the sentence states its epsilon.
    """
    study = material.study
    spent = material.audits.groupby(["dataset", "method", "epsilon"])[SPENT[study.accountant]].max()
    starts = {name for name, spec in study.methods.items() if spec.params.get("init_only")}
    drawn = {method for cell in cells for method, _ in cell.found}
    ran = {name: spec.impl for name, spec in study.methods.items() if name in drawn}
    subjects = [name for name, impl in ran.items() if impl.startswith(DIFFUSION) and name not in starts]
    subjects = subjects or list(ran)[:1]
    for cell in cells:
        (dataset, epsilon), found = cell.place, cell.found
        sets = Counter(method for method, _ in found)
        best = {
            (method, ""): {c: c.best(of[c] for one, of in found.items() if one[0] == method) for c in cell.columns}
            for method in sets
        }
        if len(sets) == 1:  # an ablation of samplers: every set against those after it
            for number, one in enumerate(found):
                yield from _against(cell, one, list(found)[number + 1 :], found)
        how = ", by the best set of each" if max(sets.values()) > 1 else ""
        present = [subject for subject in subjects if subject in sets]
        for number, subject in enumerate(present):
            rivals = [(name, "") for name in sets if name not in {*present[: number + 1], *starts}]
            yield from _against(cell, (subject, ""), rivals, best, how=how)
            for start, sampler in (one for one in found if one[0] in starts and (subject, one[1]) in found):
                less = spent.get((dataset, start, epsilon))
                note = "" if less is None else f" (which spends ε = {less:.3g})"
                yield from _against(cell, (subject, sampler), [(start, sampler)], found, note=note)


def _against(
    cell: _Cell, one: _Set, rivals: Iterable[_Set], scores: _Scores, how: str = "", note: str = ""
) -> Iterator[str]:
    """Compares one with others: a sentence for all with one outcome; `note` follows their names."""
    said: dict[str, list[str]] = {}
    for other in rivals:
        if relation := _relation(cell, (one, other), scores):
            said.setdefault(relation, []).append(cell.name(other))
    for relation, names in said.items():
        yield f"{_place(cell.place)}{how}: {cell.name(one)} {relation.format(joined(names) + note)}."


# By outcome: what is said from FEW seeds on, below, and where measures disagree; {}: the name of the other.
_OUTCOMES = {
    1: ("beats {}", "is ahead of {}", "better by"),
    -1: ("is below {}", "is behind {}", "worse by"),
    0: ("cannot be distinguished from {}", "is neither ahead of {} nor behind", "not distinguished by"),
}


def _relation(cell: _Cell, pair: tuple[_Set, _Set], scores: _Scores) -> str:
    """Compares the first with the second, with {} for the name of the second; "" without a common seed."""
    outcomes: dict[int, list[MetricColumn]] = {}
    shared = 0
    for column in cell.columns:
        ours, theirs = (scores[one][column].values for one in pair)
        if gaps := [column.sign * (value - theirs[seed]) for seed, value in ours.items() if seed in theirs]:
            shared = max(shared, len(gaps))
            few = (min(gaps) > 0) - (max(gaps) < 0)
            order = few if len(gaps) < FEW else _order(pair, column, scores)
            outcomes.setdefault(order, []).append(column)
    count = f"{shared} seed{'s' * (shared != 1)}{', too few for a claim' * (shared < FEW)}"
    if len(outcomes) == 1:
        ((outcome, columns),) = outcomes.items()
        return f"{_OUTCOMES[outcome][shared < FEW]} by {_measures(columns)} ({count})"
    parts = [f"{words} {_measures(outcomes[order])}" for order, (*_, words) in _OUTCOMES.items() if order in outcomes]
    return f"against {{}} is {'; '.join(parts)} ({count})" if parts else ""


def highest(metrics: pd.DataFrame, *keys: str) -> dict[tuple[Any, ...], Any]:
    """The method with the highest mean accuracy (percent) over seeds, among those with the most seeds, by data set,
    epsilon and these columns.

    Args:
        keys: columns of METRICS, or "direct": whether it was trained on the private images.

    Returns:
        Rows with `value`, `method`, and `name`, which has the sampler if the method has several at this place.
    """
    scores = metrics[metrics["metric"].str.startswith("acc_") & (metrics["epsilon"] != "")]
    series = ["dataset", "epsilon", "metric", "protocol", "method", "sampler"]
    means = scores.groupby(series, sort=False)["value"].agg(["mean", "count"]).reset_index()
    most = means.groupby(["dataset", "epsilon", "metric", "protocol"])["count"].transform("max")
    means = means[(means["count"] == most) & (most > 0)].rename(columns={"mean": "value"})
    several = means.groupby(["dataset", "epsilon", "metric", "method"])["sampler"].transform("nunique") > 1
    names = means["method"].where(~several, means["method"] + " (" + means["sampler"] + ")")
    means = means.assign(direct=means["protocol"] == DIRECT, name=names)
    by = ["dataset", "epsilon", *keys]
    best = means.loc[means.groupby(by, sort=False)["value"].idxmax()]
    return dict(zip(best[by].itertuples(index=False, name=None), best.itertuples(), strict=True))


def _classifiers(metrics: pd.DataFrame) -> Iterator[str]:
    """The best mean of classifiers trained on the private images, and on synthetic ones, by kind of classifier."""
    best, parts = highest(metrics[metrics["epsilon"] != "inf"], "metric", "direct"), {}
    for (*place, metric, direct), synthetic in best.items():
        if not direct and (private := best.get((*place, metric, True))):
            said = [f"{one.value:.1f} % by {one.name}" for one in (private, synthetic)]
            parts.setdefault(tuple(place), []).append(f"{name_of(metric)} {' and '.join(said)}")
    for place, texts in parts.items():
        yield (
            f"{_place(place)}: highest mean accuracy of classifiers trained on the private images, and of those on "
            f"synthetic images: {'; '.join(texts)}."
        )


def _quoted(material: Material) -> dict[_Place, list[dict[str, Any]]]:
    """By data set and epsilon of the study the best published accuracies of each protocol, without public data."""
    study, published = material.study, material.published
    best = [] if published is None else best_table(published).data.to_dict("records")
    found: dict[_Place, list[dict[str, Any]]] = {}
    for dataset, epsilons in epsilons_run(study).items():
        for row in best:
            if row["dataset"] == study.datasets[dataset].published_as()[0] and float(row["epsilon"]) in epsilons:
                claim = "" if row["privacy_status"] == SOUND else f", privacy status {row['privacy_status']}"
                found.setdefault((dataset, row["epsilon"]), []).append(row | {"claim": claim})
    return found


def _against_published(material: Material) -> dict[_Place, str]:
    """By data set and epsilon the best published accuracies without public data, and ours under these protocols."""
    own = highest(material.metrics[material.metrics["public_data"] == ""], "protocol")
    texts = {}
    for place, rows in _quoted(material).items():
        theirs = [
            f"{row['value']:g} % ({row['classifier']}, {row['method']}, protocol {row['protocol']}{row['claim']})"
            for row in rows
        ]
        found = [best for row in rows if (best := own.get((*place, row["protocol"])))]
        ours = [f"{best.value:.1f} % ({best.method}, protocol {best.protocol})" for best in found] or ["none"]
        these = "this protocol" if len(rows) == 1 else "these protocols"
        texts[place] = (
            f"best published accuracy{' of each protocol' * (len(rows) > 1)}, without public data: {joined(theirs)}; "
            f"ours by {these}: {joined(ours)}."
        )
    return texts


def _place(place: _Place) -> str:
    return f"{place[0]}, ε = {place[1]}"


def _value(column: MetricColumn, value: float) -> str:
    return f"{value:.1f} %" if column.is_accuracy else f"{value:,.4g}"


def _measures(columns: Iterable[MetricColumn]) -> str:
    return joined(column.name for column in columns)


def joined(items: Iterable[str]) -> str:
    """ "a, b and c"."""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last
