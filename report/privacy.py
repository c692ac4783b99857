"""What private runs have cost, and which of them may share an axis of epsilon.

An epsilon for one example and one for one client are different promises, and so are two at
different deltas: they are never drawn against one axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.config import NOT_SETTINGS, Scalar
from core.scores import Score
from report.curves import Course, course
from report.loading import LoadedRun, NoisedPrivacy
from report.methods import Method
from report.tables import NONE, Statistic, epsilon_of, epsilon_text, joined, sentence_case

_LEAST_TICK_RATIO = 1.12
_BUDGET_KEYS = frozenset({"seed", "privacy.epsilon", "privacy.noise-multiplier"})


def noised_of(runs: Iterable[LoadedRun]) -> NoisedPrivacy | None:
    """What the privacy of a method's runs rests on, by the first that tells."""
    return next((run.noised for run in runs if run.noised is not None), None)


def unlike_terms(named: Iterable[tuple[str, Sequence[LoadedRun]]], score: Score) -> str:
    """Why methods may not share an axis of epsilon, as a sentence; empty if they may.

    Args:
        named: Methods, each with what it is called and its runs; those without noise do not count.
        score: What would be drawn against it.
    """
    by_terms: dict[tuple[str, float], list[str]] = {}
    for name, runs in named:
        for terms in dict.fromkeys(run.noised.terms for run in runs if run.noised is not None):
            by_terms.setdefault(terms, []).append(name)
    if len(by_terms) < 2:
        return ""
    parts = [
        f"that {terms_text(terms)} of {joined(list(dict.fromkeys(names)))}"
        for terms, names in by_terms.items()
    ]
    return (
        f"{sentence_case(score.label)} is not drawn against epsilon, because these epsilons do not "
        f"compare: {'; '.join(parts)}. Report each kind by itself."
    )


def terms_text(terms: tuple[str, float]) -> str:
    """Unit and delta in words."""
    unit, delta = terms
    return f"for one {unit} at delta {delta:g}"


@dataclass(frozen=True, slots=True)
class EpsilonPoint:
    """Where a method lies against epsilon.

    Attributes:
        epsilon: Of the whole run, on record; mean over seeds.
        score: Final primary score on test, over seeds; a share is in [0, 1].
        lowest: Least over seeds.
        highest: Greatest over seeds.
        budget: What it was not to exceed; None where there is none.
    """

    epsilon: float
    score: Statistic
    lowest: float
    highest: float
    budget: float | None


def epsilon_point(runs: Sequence[LoadedRun]) -> EpsilonPoint | None:
    """The point of one method's runs; None without a guarantee, or without a figure."""
    noised, epsilon = noised_of(runs), epsilon_of(runs)
    if noised is None or epsilon is None or not all(run.noised for run in runs):
        return None
    found = final_scores(runs)
    if (score := Statistic.of(found)) is None:
        return None
    return EpsilonPoint(epsilon.mean, score, min(found), max(found), noised.budget)


def epsilon_ticks(points: Iterable[EpsilonPoint]) -> list[float]:
    """Where an axis is marked: at the budgets, and at the epsilon itself where there is none."""
    places = sorted({p.epsilon if p.budget is None else p.budget for p in points})
    kept = places[:1]
    for place in places[1:]:
        if place > kept[-1] * _LEAST_TICK_RATIO:
            kept.append(place)
    return kept


def final_scores(runs: Sequence[LoadedRun]) -> list[float]:
    """Primary score on test of the last evaluated round of each run that has one."""
    finals = [run.final for run in runs]
    return [final.test.primary for final in finals if final is not None and final.test is not None]


def family(runs: Sequence[LoadedRun]) -> tuple[tuple[str, Scalar], ...]:
    """All settings but those of the budget: methods that share it differ in epsilon alone."""
    moot = NOT_SETTINGS | _BUDGET_KEYS
    return tuple(sorted((k, v) for k, v in runs[0].config.items() if k not in moot))


def epsilon_course(runs: Sequence[LoadedRun]) -> Course:
    """Epsilon of the whole run so far: the largest client's, and how far clients lie apart.

    Value and most are the largest over clients and seeds, least is the least of them. A client that
    is not asked spends nothing; the simulation knows of all.
    """
    per_seed = [_client_epsilons(run) for run in runs if run.epsilon is not None]
    shared = sorted(set.intersection(*map(set, per_seed))) if len(per_seed) == len(runs) else []
    largest = [max(seed[r][0] for seed in per_seed) for r in shared]
    least = [min(seed[r][1] for seed in per_seed) for r in shared]
    return Course(shared, largest, least, largest)


def _client_epsilons(run: LoadedRun) -> dict[int, tuple[float, float]]:
    """By round, the largest and the least client's epsilon."""
    clients = dict.fromkeys(range(int(run.config["partition.clients"])), 0.0)
    found = {}
    for record in run.rounds:
        clients |= {
            c.partition_id: c.metrics["epsilon"] for c in record.clients if "epsilon" in c.metrics
        }
        largest = record.server.get("epsilon", 0.0 if record.round == 0 else None)
        if largest is not None:
            found[record.round] = (largest, min(largest, *clients.values()))
    return found


def signal_course(runs: Sequence[LoadedRun]) -> Course:
    """Signal-to-noise ratio of the noised sums, mean over the clients of a round."""
    return course(runs, "snr")


PRIVACY_COLUMNS = (
    "Mechanism",
    "Protects one",
    "Delta",
    "Sigma",
    "Clip",
    "Sampling rate",
    "Steps a round",
    "Epsilon of one round",
    "Epsilon of the whole run",
    "Budget",
    "Accountant",
    "By RDP: round, run",
    "Signal to noise",
)


def privacy_rows(methods: Sequence[Method]) -> list[tuple[Method, tuple[str, ...]]]:
    """Private methods, each with its cells of `PRIVACY_COLUMNS`."""
    return [
        (method, _cells(method, noised))
        for method in methods
        if (noised := noised_of(method.runs)) is not None
    ]


def _cells(method: Method, noised: NoisedPrivacy) -> tuple[str, ...]:
    every = [run.noised for run in method.runs if run.noised is not None]
    stated = [one for one in every if not (one.spent.epsilon is None and one.spent.note)]
    ratios = signal_course(method.runs).value
    return (
        noised.mechanism,
        noised.unit,
        f"{noised.delta:g}",
        _span([one.noise_multiplier for one in every]),
        _span([one.clip for one in every]),
        _span([one.sampling_rate for one in every]),
        _span([one.steps_per_round for one in every]),
        _span([one.epsilon_per_round for one in stated]),
        _whole_run(method),
        "none" if noised.budget is None else f"{noised.budget:g}",
        joined(list(dict.fromkeys(one.spent.accountant.upper() for one in every))),
        f"{_span([one.rdp_epsilon_per_round for one in stated])}, "
        f"{_span([one.rdp_epsilon_whole_run for one in stated])}",
        f"{sum(ratios) / len(ratios):.2g}" if ratios else NONE,
    )


def _whole_run(method: Method) -> str:
    text = epsilon_text(method.runs)
    spent = [run.noised.spent for run in method.runs if run.noised is not None]
    shared = [
        one.all_runs
        for one in spent
        if one.all_runs is not None and one.epsilon is not None and one.all_runs > one.epsilon
    ]
    if shared:
        text += f" (all runs on the same data: {_span(shared)})"
    return text if method.finished or text == NONE else f"{text} so far"


def _span(values: Sequence[float | None]) -> str:
    """A number where all agree to four digits, else from the least to the greatest."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    least, most = f"{min(known):.4g}", f"{max(known):.4g}"
    return least if least == most else f"{least} to {most}"
