"""Sentences that the numbers of a study support, and what is wrong with it. None is written by hand for a study."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from dpdm.config import DIRECT, Study
from dpdm.report.collect import RUN, SPENT, holes
from dpdm.report.published import best_table, epsilons_run
from dpdm.report.registry import Material
from dpdm.report.tables import (
    FEW,
    MISSING,
    MetricColumn,
    Summary,
    above_ceiling,
    distance_columns,
    distinguished,
    epsilon_label,
    leaders,
    name_of,
    public_marks,
    score_columns,
    summaries,
    with_values,
)

# Numbers not to be used; with care; who is best by them; what else they say.
WRONG, CAUTION, BEST, FINDING = "wrong", "caution", "best", "finding"
DIFFUSION = "dpdm.diffusion."  # whose methods are compared with all others
SOUND = "sound"  # the status of a published epsilon that needs no comment
MARGIN = 0.5  # points by which a stronger classifier may be below a weaker one on real images


class Verdict(NamedTuple):
    """One sentence and its level: WRONG, CAUTION, BEST or FINDING."""

    level: str
    text: str


def verdicts(material: Material, published: pd.DataFrame | None = None) -> list[Verdict]:
    """What is wrong with a study, then what its numbers say, by data set and epsilon.

    Methods are compared by the image distance and every accuracy, over the seeds that both have (see `distinguished`).
    Below three seeds the sentences only say who is ahead.

    Args:
        published: what `read_published` returned, to set accuracies against the best published ones.
    """
    metrics = with_values(material.metrics)
    known = summaries(metrics, "dataset", "method", "sampler", "epsilon")
    cells = list(_cells(material.study, metrics, known))
    theirs = dict(_against_published(material.study, metrics, published))
    return [
        *_faults(material, metrics, known),
        *(Verdict(CAUTION, text) for text in _disagreements(material.study, cells)),
        *(Verdict(BEST, text + _sentence(theirs.pop(place, ""))) for place, text in _leaders(material.study, cells)),
        *(Verdict(FINDING, text) for text in _comparisons(material, cells)),
        *(Verdict(FINDING, text) for text in _classifiers(metrics)),
        *(Verdict(FINDING, f"{_place(*place)}: {text}") for place, text in theirs.items()),
    ]


_Known = Mapping[tuple[str, ...], Summary]


def _faults(material: Material, metrics: pd.DataFrame, known: _Known) -> Iterator[Verdict]:
    study, audits = material.study, material.audits
    private = audits[audits["epsilon"] != "inf"].drop_duplicates(RUN)
    if failed := int((~private["passed"].astype(bool)).sum()):
        yield Verdict(WRONG, f"Accounting failed for {failed} of {len(private)} private runs: do not use them.")
    exceeded = private.loc[private["attack_exceeded"].astype(bool), ["dataset", "method", "epsilon"]]
    for dataset, method, epsilon in exceeded.drop_duplicates().itertuples(index=False):
        yield Verdict(WRONG, f"An attack on {method} on {dataset} proves more than the target ε = {epsilon}.")
    if missing := holes(study, material.metrics, audits):
        yield Verdict(CAUTION, f"{len(missing)} results are missing; their cells rest on fewer seeds or are empty.")
    if len(set(metrics["code"])) > 1:
        yield Verdict(CAUTION, "The results were made by several versions of the code.")
    seeds = metrics.loc[metrics["epsilon"] != "", "seed"].nunique()
    if 0 < seeds < FEW:
        yield Verdict(
            CAUTION, f"Fewer than {FEW} seeds ({seeds}): the spread is unknown, and nobody can be said to win."
        )
    if len(metrics) and "fid" not in set(metrics["metric"]):
        yield Verdict(CAUTION, "No Inception FID was measured: no distance here compares with a published FID.")
    accuracies = [column for column in score_columns(metrics) if column.is_accuracy]
    for dataset in dict.fromkeys(metrics["dataset"]):
        real = {c.metric: s for c in accuracies if (s := known.get((*c.key, dataset, "real", "", "")))}
        rows = metrics[(metrics["dataset"] == dataset) & (metrics["method"] == "real")]
        protocols = ", ".join(filter(None, dict.fromkeys(rows["protocol"])))
        order = [name for name in ("acc_logreg", "acc_mlp", "acc_cnn") if name in real]
        for worse, better in itertools.pairwise(order):
            if real[better].mean < real[worse].mean - MARGIN:
                yield Verdict(
                    WRONG,
                    f"On the real images of {dataset}, {_short(better)} ({real[better].mean:.1f} %) is below "
                    f"{_short(worse)} ({real[worse].mean:.1f} %): protocol {protocols} is too short.",
                )
    for (dataset, metric), passing in above_ceiling(metrics).items():
        named = ", ".join(f"{method} at ε = {epsilon_label(epsilon)}" for method, epsilon in dict.fromkeys(passing))
        text = f"Above the real images of {dataset} by {_short(metric)}, which are therefore no ceiling: {named}."
        yield Verdict(CAUTION, text)


class _Cell(NamedTuple):
    """The generators of one data set and finite epsilon, by what they are compared, and their scores."""

    dataset: str
    epsilon: str
    rows: pd.DataFrame
    columns: list[MetricColumn]
    distances: list[MetricColumn]  # by every extractor
    found: dict[tuple[str, str], dict[MetricColumn, Summary]]  # of both, by method and sampler


def _cells(study: Study, metrics: pd.DataFrame, known: _Known) -> Iterator[_Cell]:
    generators = metrics[~metrics["epsilon"].isin(["", "inf"]) & (metrics["protocol"] != DIRECT)]
    cells = dict(list(generators.groupby(["dataset", "epsilon"])))
    for dataset, epsilon in sorted(cells, key=lambda cell: (list(study.datasets).index(cell[0]), float(cell[1]))):
        here = cells[dataset, epsilon]
        columns, distances = (of(metrics[metrics["dataset"] == dataset]) for of in (score_columns, distance_columns))
        series = dict.fromkeys(zip(here["method"], here["sampler"], strict=True))
        found = {
            one: {c: known.get((*c.key, dataset, *one, epsilon), Summary()) for c in {*columns, *distances}}
            for one in series
        }
        yield _Cell(dataset, epsilon, here, columns, distances, found)


def _order(ours: Summary, theirs: Summary, column: MetricColumn, owners: Sequence[tuple[str, str]]) -> int:
    """1 if `ours` is better, -1 if it is worse, 0 if not distinguished; `owners`: study and method of each."""
    if distinguished(ours, theirs, column, owners):
        return 1
    return -distinguished(theirs, ours, column, owners[::-1])


def _disagreements(study: Study, cells: Sequence[_Cell]) -> Iterator[str]:
    """By data set and two extractors: how many pairs of synthetic sets they order oppositely, of those both order."""
    orders: dict[tuple[str, MetricColumn, MetricColumn], list[bool]] = {}
    for cell in cells:
        for columns in itertools.combinations(cell.distances, 2):
            for pair in itertools.combinations(cell.found, 2):
                owners = [(study.study, method) for method, _ in pair]
                first, second = (_order(*(cell.found[one][c] for one in pair), c, owners) for c in columns)
                if first and second:
                    orders.setdefault((cell.dataset, *columns), []).append(first != second)
    for (dataset, *columns), opposite in orders.items():
        if any(opposite):
            pairs = f"{len(opposite)} pair{'s' * (len(opposite) > 1)} of synthetic sets"
            names = joined(map(_distance, columns))
            yield f"{dataset}: of the {pairs} that {names} both distinguish, they order {sum(opposite)} oppositely."


class Lead(NamedTuple):
    """The best generator by one measure at one data set and epsilon."""

    dataset: str
    epsilon: str
    column: MetricColumn
    mean: float
    names: list[str]  # the best set, then the other methods with a set that cannot be distinguished from it


def leads(material: Material) -> list[Lead]:
    """The best generators of a study; see `verdicts`."""
    metrics = with_values(material.metrics)
    known = summaries(metrics, "dataset", "method", "sampler", "epsilon")
    return list(_leads(material.study, _cells(material.study, metrics, known)))


def _leads(study: Study, cells: Iterable[_Cell]) -> Iterator[Lead]:
    """By data set, epsilon and measure, distances by every extractor, of the generators with enough seeds."""
    for cell in cells:
        marks = public_marks(cell.rows)
        for column in dict.fromkeys([*cell.distances, *cell.columns]):
            rivals = {one: of[column] for one, of in cell.found.items() if of[column].n >= FEW}
            if len({method for method, _ in rivals}) > 1:
                even = leaders(rivals, column, {one: (study.study, one[0]) for one in rivals})
                _, *others = (method + marks.get(method, "") for method in dict.fromkeys(m for m, _ in even))
                names = [_name(even[0], cell.found) + marks.get(even[0][0], ""), *others]
                yield Lead(cell.dataset, cell.epsilon, column, rivals[even[0]].mean, names)


def leads_table(
    material: Material,
    published: pd.DataFrame | None = None,
    epsilons: Sequence[str] = (),
    measured: Callable[[str], bool] = lambda metric: True,
) -> pd.DataFrame:
    """By measure, data set and epsilon the best generator, then classifiers by DP-SGD, then the best published ones.

    "even" names the other methods with a set that cannot be distinguished from the best one.

    Args:
        published: what `read_published` returned.
        epsilons: those to show; default: all.
        measured: which metrics to show.
    """
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for lead in leads(material):
        column, place = lead.column, (lead.dataset, lead.epsilon)
        if measured(column.metric) and place[1] in (epsilons or [place[1]]):
            name, *even = lead.names
            header = column.header if column.is_accuracy else f"{_distance(column)} ↓"
            value = f"{lead.mean:{'.1f' if column.is_accuracy else '.3g'}}"
            rows.setdefault(header, {})[place] = f"{value} {name}" + f"; even: {', '.join(even)}" * bool(even)
    places = list(dict.fromkeys(place for row in rows.values() for place in row))
    private = material.metrics[
        material.metrics["protocol"].eq(DIRECT) & material.metrics["metric"].map(measured).astype(bool)
    ]
    means = private.groupby(["dataset", "epsilon", "metric", "method"], sort=False)["value"].mean()
    for (*place, metric), found in means.groupby(["dataset", "epsilon", "metric"], sort=False):
        header = f"{_short(metric)} accuracy %, DP-SGD on private images"
        rows.setdefault(header, {})[tuple(place)] = f"{found.max():.1f} {found.idxmax()[-1]}"
    best = pd.DataFrame() if published is None else best_table(published).data
    sources = {name: dataset.published_as()[0] for name, dataset in material.study.datasets.items()}
    for place in places:
        for row in best.itertuples():
            if (row.dataset, row.epsilon) == (sources[place[0]], place[1]):
                text = f"{row.value:g} {row.method} ({row.classifier}{_claim(row.privacy_status)})"
                rows.setdefault(f"published, protocol {row.protocol}", {})[place] = text
    frame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=places).dropna(how="all").fillna(MISSING)
    return frame.set_axis([_place(*place) for place in places], axis=1)


def _leaders(study: Study, cells: Sequence[_Cell]) -> Iterator[tuple[tuple[str, str], str]]:
    """By data set and epsilon one sentence of all `leads`."""
    for place, found in itertools.groupby(_leads(study, cells), key=lambda lead: (lead.dataset, lead.epsilon)):
        led: dict[tuple[str, ...], dict[MetricColumn, float]] = {}
        for lead in found:
            led.setdefault(tuple(lead.names), {})[lead.column] = lead.mean
        parts = (
            f"by {_measures(means)}: {first}, {joined(_value(column, mean) for column, mean in means.items())}"
            + (f" (not distinguished from {joined(others)})" if others else "")
            for (first, *others), means in led.items()
        )
        yield place, f"{_place(*place)}: best generator {'; '.join(parts)}."


def _comparisons(material: Material, cells: Sequence[_Cell]) -> Iterator[str]:
    """The study's diffusion models (else its first method) against every other generator.

    A method that draws several sets is compared by the best of them for each measure; if it has no rival, its sets are
    compared with each other. A warm start without DP-SGD is compared with sets of the same sampler, and the sentence
    states its epsilon.
    """
    study = material.study
    spent = material.audits.groupby(["dataset", "method", "epsilon"])[SPENT[study.accountant]].max()
    starts = {name for name, spec in study.methods.items() if spec.params.get("init_only")}
    ran = {method: study.methods[method].impl for cell in cells for method, _ in cell.found}
    ran = {name: ran[name] for name in study.methods if name in ran}
    subjects = [name for name, impl in ran.items() if impl.startswith(DIFFUSION) and name not in starts]
    subjects = subjects or list(ran)[:1]
    for dataset, epsilon, here, columns, _, found in cells:
        marks, sets = public_marks(here), Counter(method for method, _ in found)
        best = {method: {c: _best_of(found, method, c) for c in columns} for method in sets}
        present = [subject for subject in subjects if subject in sets]
        if len(sets) == 1:  # an ablation of samplers: every set against those after it
            for number, one in enumerate(list(found)[:-1]):
                rivals = {other: found[other] for other in list(found)[number + 1 :]}
                for text in _against(study, one, found[one], rivals, columns, marks):
                    yield f"{_place(dataset, epsilon)}: {text}."
        for number, subject in enumerate(present):
            rivals = {(name, ""): best[name] for name in sets if name not in {*present[: number + 1], *starts}}
            which = ", by the best set of each" if max(sets.values()) > 1 else ""
            for text in _against(study, (subject, ""), best[subject], rivals, columns, marks):
                yield f"{_place(dataset, epsilon)}{which}: {text}."
            for start, sampler in (one for one in found if one[0] in starts and (subject, one[1]) in found):
                pairs = {c: (found[subject, sampler][c], found[start, sampler][c]) for c in columns}
                less = spent.get((dataset, start, epsilon))
                name, rival = (_name((method, sampler), found) + marks.get(method, "") for method in (subject, start))
                rival += "" if less is None else f" (which spends ε = {less:.3g})"
                if relation := _relation(pairs, [(study.study, method) for method in (subject, start)]):
                    yield f"{_place(dataset, epsilon)}: {name} {relation.format(rival)}."


def _against(
    study: Study,
    one: tuple[str, str],
    ours: Mapping[MetricColumn, Summary],
    rivals: Mapping[tuple[str, str], Mapping[MetricColumn, Summary]],
    columns: Sequence[MetricColumn],
    marks: Mapping[str, str],
) -> Iterator[str]:
    """How one set, or one method (its sampler ""), does against others: a text for all those of one outcome."""
    said: dict[str, list[str]] = {}
    for other, theirs in rivals.items():
        pairs = {c: (ours[c], theirs[c]) for c in columns}
        if relation := _relation(pairs, [(study.study, method) for method, _ in (one, other)]):
            said.setdefault(relation, []).append(_full(other) + marks.get(other[0], ""))
    for relation, names in said.items():
        yield f"{_full(one)}{marks.get(one[0], '')} {relation.format(joined(names))}"


def _best_of(found: Mapping[tuple[str, str], Mapping[MetricColumn, Summary]], method: str, c: MetricColumn) -> Summary:
    """The scores of a method's best set by one measure; of equally many seeds where that can be."""
    own = [scores[c] for one, scores in found.items() if one[0] == method]
    most = max(summary.n for summary in own)
    return max((summary for summary in own if summary.n == most), key=lambda summary: c.sign * summary.mean)


def _relation(cells: Mapping[MetricColumn, Sequence[Summary]], owners: Sequence[tuple[str, str]]) -> str:
    """How the first of each pair does against the second, with {} for the name of the second.

    Args:
        owners: study and method of the first and of the second.
    """
    outcomes: dict[str, list[MetricColumn]] = {}
    shared = 0
    for column, (ours, theirs) in cells.items():
        if not (seeds := ours.values.keys() & theirs.values.keys()):
            continue
        shared = max(shared, len(seeds))
        gaps = [column.sign * (ours.values[seed] - theirs.values[seed]) for seed in seeds]
        if len(seeds) < FEW:
            order = (min(gaps) > 0) - (max(gaps) < 0)
        else:
            order = _order(ours, theirs, column, owners)
        outcomes.setdefault(("even", "better", "worse")[order], []).append(column)
    if not outcomes:
        return ""
    count = f"{shared} seed{'s' * (shared != 1)}"
    verbs = {"better": "beats {}", "worse": "is below {}", "even": "cannot be distinguished from {}"}
    if shared < FEW:
        verbs = {"better": "is ahead of {}", "worse": "is behind {}", "even": "is neither ahead of {} nor behind"}
        count += ", too few for a claim"
    if len(outcomes) == 1:
        ((outcome, columns),) = outcomes.items()
        return f"{verbs[outcome]} by {_measures(columns)} ({count})"
    words = {"better": "better by", "worse": "worse by", "even": "not distinguished by"}
    parts = [f"{words[outcome]} {_measures(outcomes[outcome])}" for outcome in words if outcome in outcomes]
    return f"against {{}} is {'; '.join(parts)} ({count})"


def _accuracies(metrics: pd.DataFrame) -> pd.Series:
    """Means over seeds of all accuracies of methods, by data set, epsilon, protocol, method, sampler and metric."""
    chosen = metrics[metrics["metric"].str.startswith("acc_") & (metrics["epsilon"] != "")]
    return chosen.groupby(["dataset", "epsilon", "protocol", "method", "sampler", "metric"], sort=False)["value"].mean()


def _classifiers(metrics: pd.DataFrame) -> Iterator[str]:
    """By kind of classifier the best mean of those trained on the private images, and on synthetic ones."""
    means = _accuracies(metrics[metrics["epsilon"] != "inf"])
    for (dataset, epsilon), cell in means.groupby(["dataset", "epsilon"], sort=False):
        parts = []
        for metric, found in cell.groupby("metric", sort=False):
            direct = found.index.get_level_values("protocol") == DIRECT
            if direct.any() and not direct.all():
                series = [key[3:5] for key in found.index]
                on_private, on_synthetic = (
                    f"{part.max():.1f} % by {_name(part.idxmax()[3:5], dict.fromkeys(series))}"
                    for part in (found[direct], found[~direct])
                )
                parts.append(f"{_short(metric)} {on_private} and {on_synthetic}")
        if parts:
            yield (
                f"{_place(dataset, epsilon)}: highest mean accuracy of classifiers trained on the private images, and "
                f"of those on synthetic images: {'; '.join(parts)}."
            )


def _against_published(
    study: Study, metrics: pd.DataFrame, published: pd.DataFrame | None
) -> Iterator[tuple[tuple[str, str], str]]:
    """By data set and epsilon the best published accuracies without public data, and ours under these protocols."""
    best = pd.DataFrame(columns=["dataset", "epsilon"]) if published is None else best_table(published).data
    means = _accuracies(metrics[metrics["public_data"] == ""])
    for dataset, epsilons in epsilons_run(study).items():
        rows = best[best["dataset"] == study.datasets[dataset].published_as()[0]]
        for epsilon, found in rows.groupby("epsilon", sort=False):
            if float(epsilon) not in epsilons:
                continue
            theirs, ours = [], []
            for row in found.to_dict("records"):
                claim = _claim(row["privacy_status"])
                facts = f"{row['classifier']}, {row['method']}, protocol {row['protocol']}{claim}"
                theirs.append(f"{row['value']:g} % ({facts})")
                mine = means[[key[:3] == (dataset, epsilon, row["protocol"]) for key in means.index]]
                ours += [f"{mine.max():.1f} % ({mine.idxmax()[3]}, protocol {row['protocol']})"] if len(mine) else []
            these = "this protocol" if len(theirs) == 1 else "these protocols"
            yield (
                (dataset, epsilon),
                f"best published accuracy{' of each protocol' * (len(theirs) > 1)}, without public data: "
                f"{joined(theirs)}; ours by {these}: {joined(ours) if ours else 'none'}.",
            )


def _claim(status: str) -> str:
    return "" if status == SOUND else f", privacy status {status}"


def _sentence(text: str) -> str:
    return text and f" {text[0].upper()}{text[1:]}"


def _place(dataset: str, epsilon: str) -> str:
    return f"{dataset}, ε = {epsilon}"


def _value(column: MetricColumn, value: float) -> str:
    return f"{value:.1f} %" if column.is_accuracy else f"{value:,.4g}"


def _measures(columns: Iterable[MetricColumn]) -> str:
    return joined(_short(c.metric) if c.is_accuracy else _distance(c) for c in columns)


def _distance(column: MetricColumn) -> str:
    """FID is Inception's by its name; other distances name their extractor."""
    by = "" if column.metric == "fid" else f" ({name_of(column.extractor)})"
    return column.metric.upper() + by


def _short(metric: str) -> str:
    return name_of(metric.removeprefix("acc_"))


def _name(one: tuple[str, str], series: Iterable[tuple[str, str]]) -> str:
    return _full(one) if sum(method == one[0] for method, _ in series) > 1 else one[0]


def _full(one: tuple[str, str]) -> str:
    return f"{one[0]} ({one[1]})" if one[1] else one[0]


def joined(items: Iterable[str]) -> str:
    """ "a, b and c"."""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last
