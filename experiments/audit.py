"""Audits what a run claims: the same run with canaries, and what its transcript gives away.

In the run's folder, all of it made again by the same call where it is not complete::

    audit/canaries-256/     the run with 256 canaries, and its transcript
    audit/shadow-256-000/   shadow runs for LiRA, each with other halves of 256 members
    audit.json              what came of it

An audit run is the run's configuration with canaries, ledgers of its own and no sinks. It is meant
for the eyes of whoever holds the data: what it releases is released to nobody.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.config import CanariesConfig, RunConfig, SinksConfig
from core.errors import ConfigError, Problem, RecordError
from core.records import RunFolder
from experiments import run as running
from experiments.canary_scores import score_canaries, score_names
from experiments.suite import SuiteRun
from privacy.audit import (
    MembershipInference,
    Scores,
    Verdict,
    judge,
    lira_scores,
    logit_scaled,
    membership,
)
from server.checkpoint import Checkpoint
from server.preparation import Preparation, forget_preparation, prepare
from server.progress import Progress
from server.transcript import Transcript
from strategies.table import parse_config
from workloads.vision import EVALUATION_BATCH, forget_data

KIND = "noise"
"""Canaries of the one-run audit: images unlike any other, whose part in a sum nothing hides."""

FEWEST_CANARIES, FEWEST_SHADOW_RUNS = 8, 4


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
    """

    run: str
    strategy: str
    mechanism: str
    verdict: Verdict
    membership: MembershipInference | None
    folder: Path

    def to_json(self) -> dict[str, Any]:
        """For programs, and for ``audit.json``."""
        verdict = self.verdict
        return {
            "run": self.run,
            "strategy": self.strategy,
            "mechanism": self.mechanism,
            "unit": "example",
            "canaries": KIND,
            "outcome": verdict.outcome,
            "lower_bound": verdict.lower_bound,
            **dataclasses.asdict(verdict),
            "text": verdict.text,
            "membership": dataclasses.asdict(self.membership) if self.membership else None,
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
) -> Audit:
    """Audit the run in a folder and write ``audit.json`` into it.

    Runs that are complete are not made again, and those that were cut off go on.

    Args:
        path: The run folder; of the run itself only its configuration is read.
        progress: Told how each audit run goes.
        canaries: m, of all clients together.
        confidence: Of the verdict.
        shadow_runs: N of LiRA; 0 leaves it out. 16 to 64 are sensible.

    Raises:
        ConfigError: The run cannot be audited; names the reason.
        DataError, RunError: As `experiments.run.run`.
        RecordError: There is no run, or what lies in an audit run's place is none or another's.
    """
    _refuse_numbers(canaries, confidence, shadow_runs)
    folder = RunFolder.open(path)
    config = _audited(folder)
    try:
        attacked = _with_canaries(folder, config, f"canaries-{canaries}", KIND, canaries, 0)
        _refuse_unscored(prepare(attacked))
        _make(attacked, progress)
        preparation = prepare(attacked)
        found = Audit(
            run=folder.path.name,
            strategy=config.strategy,
            mechanism=config.privacy.mechanism,
            verdict=_verdict(preparation, _folder_of(attacked), confidence),
            membership=_lira(folder, config, progress, canaries, shadow_runs, confidence),
            folder=folder.path,
        )
    finally:
        forget_preparation()
        forget_data()
    folder.write_json("audit", found.to_json())
    return found


def _refuse_numbers(canaries: int, confidence: float, shadow_runs: int) -> None:
    problems = []
    if canaries < FEWEST_CANARIES:
        rule = f"must be at least {FEWEST_CANARIES}; m canaries show at most about ln(m / 3)"
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


def _verdict(preparation: Preparation, folder: RunFolder, confidence: float) -> Verdict:
    plan, canaries = preparation.privacy, preparation.canaries
    assert canaries is not None, "an audit run has canaries"
    claimed = plan is not None and math.isfinite(plan.whole_run.value)
    return judge(
        score_canaries(preparation, Transcript(folder.transcript)),
        canaries.included,
        claim=plan.whole_run.value if plan is not None and claimed else None,
        delta=preparation.config.privacy.delta,
        confidence=confidence,
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
        assert preparation.canaries is not None, "a shadow run has members"
        statistics.append(_confidences(preparation, _folder_of(shadow)))
        included.append(preparation.canaries.included)
    members = np.stack(included)
    scores = lira_scores(logit_scaled(np.stack(statistics)), members)
    return membership(scores.ravel(), members.ravel(), num_runs, confidence)


@torch.no_grad()
def _confidences(preparation: Preparation, folder: RunFolder) -> Scores:
    """Probability that the final model gives to each canary's own label, shape (m,)."""
    config, canaries, workload = preparation.config, preparation.canaries, preparation.workload
    assert canaries is not None, "a shadow run has members"
    last = Checkpoint.read(folder.checkpoint(config.rounds), config.identity())
    model = preparation.model
    model.load_state_dict(dict(last.state.weights))
    model.eval()
    examples = workload.examples(torch.from_numpy(canaries.indices))
    losses = [
        workload.loss(model, inputs, labels)
        for inputs, labels in zip(
            examples.inputs.split(EVALUATION_BATCH),
            examples.labels.split(EVALUATION_BATCH),
            strict=True,
        )
    ]
    return torch.cat(losses).neg().to(torch.float64).exp().cpu().numpy()
