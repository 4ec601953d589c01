"""Sentences that the numbers of a study support, and what is wrong with it; none is written by hand."""

import itertools
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from dpdm.config import DIRECT, Study
from dpdm.report import tables
from dpdm.report.collect import RUN, SPENT, holes
from dpdm.report.published import best_table, epsilons_run
from dpdm.report.registry import Material
from dpdm.report.tables import FEW, MISSING, MetricColumn, Summary, distinguished, name_of
from dpdm.specs import RunSpec

# Levels: do not use the numbers; use them with care; the best method by them; other findings.
WRONG, CAUTION, BEST, FINDING = "wrong", "caution", "best", "finding"
DIFFUSION = "dpdm.diffusion."  # these methods are compared with all others
SOUND = "sound"  # the status of a published epsilon that needs no comment
TAUGHT = "with a DP teacher"  # the departure of such a method
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
    sets = trained.groupby(["dataset", "method", "sampler", "epsilon"], sort=False)["seed"].nunique()
    seeds = sets.max() if len(sets) else 0
    if tables.mixes_protocols(metrics):
        yield Verdict(CAUTION, "Accuracies are of several protocols, so that no method is compared by them.")
    if 0 < seeds < FEW:
        text = f"Fewer than {FEW} seeds ({seeds}): the spread is unknown, and nobody can be said to win."
        yield Verdict(CAUTION, text)
    elif (sets < FEW).any():
        few = sets[sets < FEW].reset_index().groupby(["dataset", "method"], sort=False)
        listed = [
            f"{dataset}, {method}{_listed(rows['sampler'])} at ε = {', '.join(rows['epsilon'].unique())}"
            for (dataset, method), rows in few
        ]
        yield Verdict(CAUTION, f"Fewer than {FEW} seeds, too few for a claim: {'; '.join(listed)}.")
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
    for (dataset, score), passing in tables.above_ceiling(metrics).items():
        named = ", ".join(f"{method} at ε = {tables.epsilon_label(e)}" for method, e in dict.fromkeys(passing))
        text = f"Means above those of the real images of {dataset} by {score}, which are no ceiling: {named}."
        yield Verdict(CAUTION, text)


_Set = tuple[str, str]  # method and sampler; "" is the sampler of a method's best set
_Place = tuple[str, str]  # data set and epsilon
_Scores = Mapping[_Set, Mapping[MetricColumn, Summary]]


class _Cell(NamedTuple):
    """The generators of one data set and finite epsilon, the measures that compare them, and their scores."""

    place: _Place
    marks: dict[str, str]  # of methods with public data or a DP teacher
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
        columns = distances[:1] if tables.mixes_protocols(here) else columns
        generators = here[~here["epsilon"].isin(["", "inf"]) & (here["protocol"] != DIRECT)]
        for epsilon in sorted(generators["epsilon"].unique(), key=float):
            rows = generators[generators["epsilon"] == epsilon]
            found = {
                one: {c: known[*c.key, dataset, *one, epsilon] for c in {*columns, *distances}}
                for one in dict.fromkeys(zip(rows["method"], rows["sampler"], strict=True))
            }
            cells.append(_Cell((dataset, epsilon), _marks(rows), columns, distances, found))
    return cells


def _marks(rows: pd.DataFrame) -> dict[str, str]:
    """The mark after the name of each method that learned from public data or has a DP teacher."""
    taught = rows.loc[rows["departures"].str.contains(TAUGHT, regex=False), "method"].unique()
    public = tables.public_marks(rows)
    return {one: f" ({TAUGHT})" * (one in taught) + public.get(one, "") for one in rows["method"].unique()}


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


class _Lead(NamedTuple):
    """The best generator with FEW seeds by one measure at one place."""

    place: _Place
    column: MetricColumn
    mean: float
    name: str
    even: tuple[str, ...]  # the best sets of other methods, if they are not distinguished from it
    ahead: tuple[str, ...]  # methods with fewer seeds and a better mean, and these seeds


def _leads(cells: Iterable[_Cell]) -> Iterator[_Lead]:
    """By place and measure: accuracies, and distances by every extractor."""
    for cell in cells:
        for column in dict.fromkeys([*cell.distances, *cell.columns]):
            found = {one: of[column] for one, of in cell.found.items()}
            if best := tables.leaders(found, column):
                mean = found[best[0]].mean
                rivals = {one: s for one, s in found.items() if s.n >= FEW and one[0] != best[0][0]}
                theirs = {one[0]: one for one in sorted(rivals, key=lambda one: column.sign * found[one].mean)}
                even = [one for one in rivals if one == theirs[one[0]] and one in best]
                better = {one: s for one, s in found.items() if 0 < s.n < FEW and column.sign * (s.mean - mean) > 0}
                ahead = (f"{cell.name(one)}, {_value(column, s.mean)} ({_seeds(s.n)})" for one, s in better.items())
                yield _Lead(cell.place, column, mean, cell.name(best[0]), tuple(map(cell.name, even)), tuple(ahead))


def leads_table(material: Material) -> pd.DataFrame:
    """By measure, data set and epsilon the best generator, then classifiers by DP-SGD, then the best published ones.

    "even" names the other methods whose best set cannot be distinguished from the best one, "ahead" those with fewer
    than FEW seeds and a better mean.
    """
    rows: dict[str, dict[_Place, str]] = {}
    for place, column, mean, name, even, ahead in _leads(_cells(material)):
        header = column.header if column.is_accuracy else f"{column.name} ↓"
        parts = [f"{_value(column, mean).removesuffix(' %')} {name}"]
        parts += [f"even: {', '.join(even)}"] * bool(even) + [f"ahead: {', '.join(ahead)}"] * bool(ahead)
        rows.setdefault(header, {})[place] = "; ".join(parts)
    places = list(dict.fromkeys(place for row in rows.values() for place in row))
    for (*place, metric, direct), best in highest(material.metrics, "metric", "direct").items():
        if direct:
            header = f"{name_of(metric)} accuracy %, DP-SGD on private images"
            rows.setdefault(header, {})[tuple(place)] = f"{best.value:.1f} {best.name}"
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
    for place, found in itertools.groupby(_leads(cells), key=lambda lead: lead.place):
        led: dict[tuple[Any, ...], dict[MetricColumn, float]] = {}
        for lead in found:
            led.setdefault((lead.name, lead.even, lead.ahead), {})[lead.column] = lead.mean
        parts = (
            f"by {_measures(means)}: {first}, {joined(_value(column, mean) for column, mean in means.items())}"
            + (f" (not distinguished from {joined(even)})" if even else "")
            + (f" (with fewer seeds, {joined(ahead)} ahead)" if ahead else "")
            for (first, even, ahead), means in led.items()
        )
        texts[place] = f"{_place(place)}: best generator {'; '.join(parts)}."
    return texts


def _comparisons(material: Material, cells: Iterable[_Cell]) -> Iterator[str]:
    """Compares the study's diffusion models (else its first method) with every other generator.

    For each measure, a method is compared by the best of its sets; if it has no rival, its sets are compared with each
    other. The start of a method, without DP-SGD, is compared with its sets by the same sampler, and the sentence states
    the epsilon of the start.
    """
    study = material.study
    spent = material.audits.groupby(["dataset", "method", "epsilon"])[SPENT[study.accountant]].max()
    starts = {name for name, spec in study.methods.items() if spec.params.get("init_only")}
    runs = {run.place[:3]: run for run in study.runs()}
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
                if _starts(study, *(runs[dataset, name, epsilon] for name in (start, subject)), sampler):
                    less = spent.get((dataset, start, epsilon))
                    note = "" if less is None else f" (which spends ε = {less:.3g})"
                    yield from _against(cell, (subject, sampler), [(start, sampler)], found, note=note)


def _starts(study: Study, start: RunSpec, run: RunSpec, sampler: str) -> bool:
    """Whether `start` is a run without its DP-SGD, and the samplers of this name are equal."""
    keys = ("prior", "prior_share", "init_from")
    begun = ((one.impl, *map(one.params.get, keys), study.sample(one, sampler).sampler_params) for one in (start, run))
    return bool(start.params.get("init_only")) and operator.eq(*begun)


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
    """Compares the first with the second, with {} for the name of the second; "" without a common seed.

    Measures with FEW seeds or more, if there are any; else the others, of which nothing is claimed.
    """
    compared: dict[MetricColumn, tuple[int, int, str]] = {}  # seeds, order, and how the seeds are said
    for column in cell.columns:
        one, other = (scores[each][column] for each in pair)
        gaps = [
            column.sign * (value - other.values[seed]) for seed, value in one.values.items() if seed in other.values
        ]
        least = min(one.n, other.n)
        if len(gaps) >= FEW or least >= FEW:
            paired = len(gaps) >= FEW
            said = _seeds(len(gaps)) if paired else f"{one.n} and {_seeds(other.n)}, unpaired"
            compared[column] = len(gaps) if paired else least, _order(pair, column, scores), said
        elif gaps:
            few = (min(gaps) > 0) - (max(gaps) < 0)
            compared[column] = len(gaps), few, f"{_seeds(len(gaps))}, too few for a claim"
    claims = {column: found for column, found in compared.items() if found[0] >= FEW} or compared
    if not claims:
        return ""
    outcomes: dict[int, list[MetricColumn]] = {}
    for column, (_, order, _) in claims.items():
        outcomes.setdefault(order, []).append(column)
    least, _, count = min(claims.values(), key=lambda found: found[0])
    if len(outcomes) == 1:
        ((outcome, columns),) = outcomes.items()
        return f"{_OUTCOMES[outcome][least < FEW]} by {_measures(columns)} ({count})"
    parts = [f"{words} {_measures(outcomes[order])}" for order, (*_, words) in _OUTCOMES.items() if order in outcomes]
    return f"against {{}} is {'; '.join(parts)} ({count})"


def highest(metrics: pd.DataFrame, *keys: str) -> dict[tuple[Any, ...], Any]:
    """The method with the highest mean accuracy (percent) over seeds, among those with the most seeds, by data set,
    epsilon and these columns.

    Args:
        keys: columns of METRICS, or "direct": whether it was trained on the private images.

    Returns:
        Rows with `value`, `count` of seeds, `method`, and `name`, which has the sampler if the method has several at
        this place, and marks.
    """
    scores = metrics[metrics["metric"].str.startswith("acc_") & (metrics["epsilon"] != "")]
    series = ["dataset", "epsilon", "metric", "protocol", "method", "sampler"]
    means = scores.groupby(series, sort=False)["value"].agg(["mean", "count"]).reset_index()
    most = means.groupby(["dataset", "epsilon", "metric", "protocol"])["count"].transform("max")
    means = means[(means["count"] == most) & (most > 0)].rename(columns={"mean": "value"})
    several = means.groupby(["dataset", "epsilon", "metric", "method"])["sampler"].transform("nunique") > 1
    names = means["method"].where(~several, means["method"] + " (" + means["sampler"] + ")")
    names += means["method"].map(_marks(metrics)).fillna("")
    means = means.assign(direct=means["protocol"] == DIRECT, name=names)
    by = ["dataset", "epsilon", *keys]
    best = means.loc[means.groupby(by, sort=False)["value"].idxmax()]
    return dict(zip(best[by].itertuples(index=False, name=None), best.itertuples(), strict=True))


def _classifiers(metrics: pd.DataFrame) -> Iterator[str]:
    """The best mean of classifiers trained on the private images, and on synthetic ones, by kind of classifier."""
    if tables.mixes_protocols(metrics):
        return
    best, parts = highest(metrics[metrics["epsilon"] != "inf"], "metric", "direct"), {}
    for (*place, metric, direct), synthetic in best.items():
        if not direct and (private := best.get((*place, metric, True))):
            said = [f"{one.value:.1f} % by {one.name}, {_seeds(one.count)}" for one in (private, synthetic)]
            parts.setdefault(tuple(place), []).append(f"{name_of(metric)} {', and '.join(said)}")
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
        ours = [f"{best.value:.1f} % ({best.name}, protocol {best.protocol})" for best in found] or ["none"]
        these = "this protocol" if len(rows) == 1 else "these protocols"
        texts[place] = (
            f"best published accuracy{' of each protocol' * (len(rows) > 1)}, without public data: {joined(theirs)}; "
            f"ours by {these}: {joined(ours)}."
        )
    return texts


def _listed(samplers: Iterable[str]) -> str:
    names = ", ".join(dict.fromkeys(filter(None, samplers)))
    return f" ({names})" * bool(names)


def _place(place: _Place) -> str:
    return f"{place[0]}, ε = {place[1]}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _value(column: MetricColumn, value: float) -> str:
    return f"{value:.1f} %" if column.is_accuracy else f"{value:,.4g}"


def _measures(columns: Iterable[MetricColumn]) -> str:
    return joined(column.name for column in columns)


def joined(items: Iterable[str]) -> str:
    """ "a, b and c"."""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last
