"""Audits what a run claims: the same run with canaries, and what its transcript gives away.

In the run's folder, all of it made again by the same call where it is not complete::

    audit/canaries-256/     the run with 256 canaries, and its transcript
    audit/shadow-256-000/   shadow runs for LiRA, each with other halves of 256 members
    audit.json              what came of it

An audit run is the run's configuration with canaries, ledgers of its own and no sinks. It is meant
for the eyes of whoever holds the data: what it releases is released to nobody. Which of the first
run's canaries are included is decided when it is made, by the operating system's generator, and
then kept in its configuration.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.config import CanariesConfig, RunConfig, SinksConfig
from core.errors import ConfigError, Problem, RecordError, TesseraError
from core.examples import labelled
from core.records import RunFolder
from data.canaries import Canaries
from experiments import run as running
from experiments.canary_scores import score_canaries, score_names
from experiments.suite import SuiteRun
from pairing.configuration import parse_config
from privacy.audit import (
    OUTSIDE,
    MembershipInference,
    Scores,
    Verdict,
    judge,
    lira_scores,
    logit_scaled,
    membership,
    most_that_canaries_show,
)
from server.checkpoint import Checkpoint
from server.preparation import Preparation, forget_preparation, prepare
from server.progress import Progress
from server.transcript import Transcript
from strategies.mosaic import image_workload
from workloads.images import EVALUATION_BATCH
from workloads.table import forget_data

KIND = "noise"
"""Canaries of the one-run audit: images unlike any other, whose part in a sum nothing hides."""

FEWEST_CANARIES = 14
"""Fewer show nothing at 99% confidence with two scores."""

FEWEST_SHADOW_RUNS = 4

_PACKAGES = ("tessera-fl", "opacus", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What an audit of a run came to.

    Attributes:
        run: Name of the run's folder.
        strategy: As configured.
        mechanism: As in ``privacy.mechanism``.
        verdict: Of the one-run audit.
        membership: Of LiRA; None where no shadow runs were asked for.
        folder: Of the audited run.
        canaries: Of the one-run audit, with the seeds of which they are and of their coins.
        versions: Of Tessera and what it computes with, now.
        time: When the audit was done, UTC.
    """

    run: str
    strategy: str
    mechanism: str
    verdict: Verdict
    membership: MembershipInference | None
    folder: Path
    canaries: CanariesConfig
    versions: Mapping[str, str]
    time: str = field(compare=False)

    def to_json(self) -> dict[str, Any]:
        """For programs, and for ``audit.json``."""
        verdict = self.verdict
        return {
            "run": self.run,
            "strategy": self.strategy,
            "mechanism": self.mechanism,
            "unit": "example",
            "canaries": self.canaries.kind,
            "seed": self.canaries.seed,
            "coins": self.canaries.coins,
            "outcome": verdict.outcome,
            "lower_bound": verdict.lower_bound,
            **dataclasses.asdict(verdict),
            "text": verdict.text,
            "membership": dataclasses.asdict(self.membership) if self.membership else None,
            "outside_the_guarantee": OUTSIDE,
            "versions": dict(self.versions),
            "time": self.time,
        }

    @property
    def text(self) -> str:
        """In plain words."""
        lira = f" {self.membership.text}" if self.membership else ""
        return self.verdict.text + lira


def audit(
    path: str | Path,
    progress: Progress,
    *,
    canaries: int = 256,
    confidence: float = 0.99,
    shadow_runs: int = 0,
    warn: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Audit the run in a folder and write ``audit.json`` into it.

    Runs that are complete are not made again, and those that were cut off go on.

    Args:
        path: The run folder; of the run itself its configuration and what it spent are read.
        progress: Told how each audit run goes.
        canaries: m, of all clients together.
        confidence: Of the verdict.
        shadow_runs: N of LiRA; 0 leaves it out. 16 to 64 are sensible.
        warn: Told before the first run what cannot come of it.

    Raises:
        ConfigError: The run cannot be audited; names the reason.
        DataError, RunError: As `experiments.run.run`.
        RecordError: There is no run, or what lies in an audit run's place is none or another's.
    """
    _refuse_numbers(canaries, confidence, shadow_runs)
    folder = RunFolder.open(path)
    config = _audited(folder)
    try:
        name = f"canaries-{canaries}"
        coins = _coins(RunFolder(folder.audit / name))
        attacked = _with_canaries(folder, config, name, KIND, canaries, coins)
        preparation = prepare(attacked)
        _refuse_unscored(preparation)
        if shadow_runs:
            _refuse_too_many_members(canaries, preparation)
        claim, refused = _claim(folder, preparation)
        if warning := _warning(claim, preparation, confidence):
            warn(warning)
        _make(attacked, progress)
        preparation = prepare(attacked)
        found = Audit(
            run=folder.path.name,
            strategy=config.strategy,
            mechanism=config.privacy.mechanism,
            verdict=judge(
                score_canaries(preparation, Transcript(_folder_of(attacked).transcript)),
                _canaries(preparation).included,
                claim=claim,
                refused=refused,
                delta=config.privacy.delta,
                confidence=confidence,
            ),
            membership=_lira(folder, config, progress, canaries, shadow_runs, confidence),
            folder=folder.path,
            canaries=attacked.canaries,
            versions=_versions(),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    finally:
        forget_preparation()
        forget_data()
    folder.write_json("audit", found.to_json())
    return found


def _refuse_numbers(canaries: int, confidence: float, shadow_runs: int) -> None:
    problems = []
    if canaries < FEWEST_CANARIES:
        most = most_that_canaries_show(256, 1e-5, 0.99)
        rule = (
            f"must be at least {FEWEST_CANARIES}: fewer show nothing at 99% confidence with two "
            f"scores; with one score 256 show an epsilon of at most {most:.1f}"
        )
        problems.append(Problem("--canaries", str(canaries), rule))
    if not 0.5 < confidence < 1:
        rule = "must be above 0.5 and below 1, such as 0.99"
        problems.append(Problem("--confidence", f"{confidence:g}", rule))
    if shadow_runs and shadow_runs < FEWEST_SHADOW_RUNS:
        rule = f"must be 0, or at least {FEWEST_SHADOW_RUNS}; 16 to 64 are sensible"
        problems.append(Problem("--shadow-runs", str(shadow_runs), rule))
    if problems:
        raise ConfigError(problems)


def _audited(folder: RunFolder) -> RunConfig:
    """The configuration of the run to audit."""
    try:
        config = parse_config(folder.read_json("config"))
    except ConfigError as error:
        raise RecordError(
            f"{folder.path / 'config.json'} does not fit this version of Tessera: {error}"
        ) from error
    if config.canaries.kind != "none":
        rule = "the run is an audit's own; audit the run that it was made for"
        raise ConfigError([Problem("canaries.kind", config.canaries.kind, rule)])
    if config.privacy.mechanism == "client":
        rule = (
            "protects whole clients, and canaries are examples: a bound on what one of them shows "
            "says nothing against a claim about all that a client holds; no audit is offered for it"
        )
        raise ConfigError([Problem("privacy.mechanism", "client", rule)])
    return config


def _refuse_unscored(preparation: Preparation) -> None:
    if not preparation.strategy.asks_clients or not score_names(preparation):
        rule = (
            "sends neither weights made of gradient steps nor images, so that there is no score of "
            "a canary; audit a run of another strategy"
        )
        raise ConfigError([Problem("strategy", preparation.config.strategy, rule)])


def _refuse_too_many_members(count: int, preparation: Preparation) -> None:
    held = sum(map(len, preparation.partition_without.clients))
    if count > held:
        rule = f"is above the {held} images that clients hold, which --shadow-runs draws from"
        raise ConfigError([Problem("--canaries", str(count), f"{rule}; lower it")])


def _claim(folder: RunFolder, preparation: Preparation) -> tuple[float | None, str]:
    """Epsilon that the run claims, the larger of planned and spent; or None, and why it is refused.

    A run that spent nothing yet claims what it planned, one without noise nothing.
    """
    plan = preparation.privacy
    if plan is None:
        return None, ""
    there = (folder.path / "privacy.json").exists()
    spent = (folder.read_json("privacy").get("spent") if there else None) or {}
    if spent.get("epsilon") is None and spent.get("note"):
        return None, str(spent["note"])
    return max(plan.whole_run.value, spent.get("epsilon") or 0.0), ""


def _warning(claim: float | None, preparation: Preparation, confidence: float) -> str:
    """What is said of a claim that no guesses could refute; empty where some could."""
    count, delta = len(_canaries(preparation)), preparation.config.privacy.delta
    num_scores = len(score_names(preparation))
    most = most_that_canaries_show(count, delta, confidence, num_scores)
    if claim is None or most > claim:
        return ""
    return (
        f"with every guess right {count} canaries show an epsilon of {most:.3g} at "
        f"{100 * confidence:g}% confidence, which is not above the claim of {claim:.4g}: so few "
        "cannot refute it; --canaries takes more"
    )


def _coins(folder: RunFolder) -> int:
    """The seed of an audit run's coins: its own where it was made before, else nobody's guess."""
    try:
        return parse_config(folder.read_json("config")).canaries.coins
    except TesseraError:
        return secrets.randbelow(2**31)


def _canaries(preparation: Preparation) -> Canaries:
    assert preparation.canaries is not None, "an audit run has canaries"
    return preparation.canaries


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _with_canaries(
    folder: RunFolder, config: RunConfig, name: str, kind: str, count: int, coins: int
) -> RunConfig:
    return dataclasses.replace(
        config,
        runs=str(folder.audit),
        name=name,
        canaries=CanariesConfig(kind=kind, count=count, coins=coins),
        privacy=dataclasses.replace(config.privacy, ledger=""),
        sinks=SinksConfig(),
    )


def _folder_of(config: RunConfig) -> RunFolder:
    return RunFolder(Path(config.runs) / config.name)


def _make(config: RunConfig, progress: Progress) -> None:
    """Run what is left of an audit run."""
    found = SuiteRun("", "", config).look()
    folder = _folder_of(config).path
    if found.state == "todo":
        running.run(config, progress, keep_data=True)
    elif found.state == "incomplete":
        running.resume(folder, progress, keep_data=True)
    elif found.state != "done":
        why = f": {found.reason}" if found.reason else ""
        raise RecordError(
            f"{folder} holds an audit run that is {found.state}{why}; move it away to make it anew"
        )


def _lira(
    folder: RunFolder,
    config: RunConfig,
    progress: Progress,
    targets: int,
    num_runs: int,
    confidence: float,
) -> MembershipInference | None:
    if not num_runs:
        return None
    statistics: list[Scores] = []
    included = []
    for number in range(num_runs):
        name = f"shadow-{targets}-{number:03d}"
        shadow = _with_canaries(folder, config, name, "members", targets, number)
        _make(shadow, progress)
        preparation = prepare(shadow)
        statistics.append(_confidences(preparation, _folder_of(shadow)))
        included.append(_canaries(preparation).included)
    members = np.stack(included)
    scores = lira_scores(logit_scaled(np.stack(statistics)), members)
    return membership(scores.ravel(), members.ravel(), num_runs, confidence)


@torch.no_grad()
def _confidences(preparation: Preparation, folder: RunFolder) -> Scores:
    """Probability that the final model gives to each canary's own label, shape (m,)."""
    config, workload = preparation.config, preparation.workload
    last = Checkpoint.read(folder.checkpoint(config.rounds), config.identity())
    model = preparation.model
    model.load_state_dict(dict(last.state.weights))
    model.eval()
    own = workload.examples(torch.from_numpy(_canaries(preparation).indices))
    examples = labelled(own)
    losses = [
        image_workload(workload).loss(model, inputs, labels)
        for inputs, labels in zip(
            examples.inputs.split(EVALUATION_BATCH),
            examples.labels.split(EVALUATION_BATCH),
            strict=True,
        )
    ]
    return torch.cat(losses).neg().to(torch.float64).exp().cpu().numpy()
