"""All that must hold before anything starts: data, partition, model and method fit together."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.config import RunConfig, Scalar
from core.device import check_precision, resolve_device
from core.errors import ConfigError, Problem
from core.groups import ParameterGroups
from core.parameters import NamedTensors, trainable_names, weights_of
from core.wire import Array
from core.workload import Dataset, Workload
from data.canaries import Canaries, deal_canaries
from data.partition import Partition
from data.partitioners import load_or_make_partition
from pairing.configuration import parse_config
from pairing.exchange import clients_evaluate, received_form, sent_form
from privacy.ledger import refuse_other_deal
from privacy.plan import PrivacyPlan
from server.privacy_plan import plan_privacy
from server.sinks import missing_sinks
from server.starting import load_start
from strategies.base import ClientShape, ModelForm, ServerState, Strategy, model_seed
from strategies.private import refuse_large_delta, refuse_unfit_model
from strategies.table import build_strategy
from workloads.table import open_dealt

OWN_DATA = "clients' own images"
"""What a folder of ledgers is bound to whose clients bring their own: each ledger is a key's."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """A run that is ready to start; nothing has been written.

    Attributes:
        config: As parsed.
        strategy: The method.
        workload: Data and objective.
        partition: Who holds what, canaries included.
        model: A model of the right form, holding the initial weights.
        initial_weights: w_0.
        groups: What of the model is shared, personal and frozen.
        form: Form of what is shared.
        clients_evaluate: Whether the models that count are with the clients, so that only they can
            judge them.
        privacy: What a private run costs; None for one that is not private.
        canaries: Those that an audit put among the data; None where there are none.
        partition_without: The partition without them, as it is written down.
        shared_ledgers: Folder of ledgers that outlive the run; None where the run has its own.
        deal: Digest of data and partition that such a folder is bound to; else empty.
    """

    config: RunConfig
    strategy: Strategy
    workload: Workload
    partition: Partition
    model: nn.Module
    initial_weights: NamedTensors
    groups: ParameterGroups
    form: ModelForm
    clients_evaluate: bool
    privacy: PrivacyPlan | None
    canaries: Canaries | None
    partition_without: Partition
    shared_ledgers: Path | None = None
    deal: str = ""

    def client_shapes(self) -> list[ClientShape]:
        """Every client by partition id."""
        workload, input_shape = self.workload, tuple(getattr(self.workload, "input_shape", ()))
        return [
            ClientShape(
                partition_id,
                tuple(counts),
                self.form,
                input_shape,
                sent_form(workload, self.form, partition_id),
                workload.num_training_examples(sum(counts)),
            )
            for partition_id, counts in enumerate(self.partition.class_counts.tolist())
        ]

    def owners(self) -> dict[str, int]:
        """How many clients train an entry, of those that not all train."""
        forms = [shape.trained.weights for shape in self.client_shapes()]
        parts = [form for form in forms if len(form) < len(self.form.weights)]
        missing = {name for form in parts for name in self.form.weights if name not in form}
        return {name: sum(name in form for form in forms) for name in missing}

    def broadcast(self, state: ServerState) -> dict[str, Array]:
        """What every client receives: the strategy's arrays, but for what is not shared."""
        arrays, groups = self.strategy.broadcast(state), self.groups
        return {name: array for name, array in arrays.items() if groups.is_shared(name)}

    def initial_state(self) -> ServerState:
        """What the server holds before the first round."""
        slots = self.strategy.initial_slots(self.initial_weights, self.form.trainable)
        return ServerState(self.initial_weights, slots)

    @property
    def has_own_data(self) -> bool:
        """Whether clients bring their own data; who holds what is known once they have joined."""
        return self.config.partition.scheme == "own"

    def joined(self, partition: Partition) -> Preparation:
        """The same run, once it is known what clients hold that bring their own data."""
        assert self.has_own_data and self.canaries is None
        return dataclasses.replace(self, partition=partition, partition_without=partition)

    @property
    def num_clients_asked(self) -> int:
        """Clients that the run needs on a network; none for a method that asks none."""
        return len(self.partition.clients) if self.strategy.asks_clients else 0

    def hand_out_order(self) -> list[int]:
        """Partition ids, most examples first: a pure function of the partition.

        Work handed out largest first keeps workers busy to the end; replies are folded in this
        order too, so that sums do not depend on who answers first.
        """
        if not self.strategy.asks_clients:
            return []
        sizes = [len(indices) for indices in self.partition.clients]
        return sorted(range(len(sizes)), key=lambda k: (-sizes[k], k))


def prepare(config: RunConfig) -> Preparation:
    """Load the data, deal it to clients, build the model, and check that all of it fits.

    The last preparation is kept, so that a check before a run costs nothing in the run.

    Raises:
        ConfigError: Model and data or model and method do not fit, or a sink is not installed.
        DataError: Data is missing or unfit, or no partition meets the configuration.
        RunError: The device is not there, or has not the precision.
    """
    return _prepare(tuple(sorted(config.flat().items())))


@lru_cache(maxsize=1)
def _prepare(flat: tuple[tuple[str, Scalar], ...]) -> Preparation:
    config = parse_config(dict(flat))
    if problems := missing_sinks(config):
        raise ConfigError(problems)
    torch.set_num_threads(config.engine.server_threads)
    device = resolve_device(config.engine.device)
    check_precision(config.engine.precision, device)
    workload = open_dealt(config, device)
    model = workload.build_model(model_seed(config))
    strategy = build_strategy(config)
    strategy.check_model(model)
    refuse_unfit_model(config, model, workload)
    groups = workload.groups(model)
    _refuse_unfit_groups(strategy, workload, model, groups)
    if config.start_from:
        load_start(model, groups, config.start_from, workload.numbering())
    if config.partition.scheme == "own":
        partition = _nobody_yet(workload.dataset, config.partition.clients)
    else:
        partition = load_or_make_partition(workload.dataset, config.partition, config.seed)
    privacy = _privacy(config, [len(indices) for indices in partition.clients])
    dealt = deal_canaries(config.canaries, workload.dataset, partition)
    shared, deal = None, ""
    if config.privacy.ledger:
        shared = Path(config.privacy.ledger).expanduser().resolve()
        own = config.partition.scheme == "own"
        deal = OWN_DATA if own else _deal(workload.dataset.sha256(), partition)
        refuse_other_deal(shared, deal)
    return Preparation(
        config=config,
        strategy=strategy,
        workload=workload.with_dataset(dealt.dataset),
        partition=dealt.partition,
        model=model,
        initial_weights=weights_of(model),
        groups=groups,
        form=received_form(model, groups),
        clients_evaluate=clients_evaluate(strategy, workload, groups),
        privacy=privacy,
        canaries=dealt.canaries,
        partition_without=partition,
        shared_ledgers=shared,
        deal=deal,
    )


def _refuse_unfit_groups(
    strategy: Strategy, workload: Workload, model: nn.Module, groups: ParameterGroups
) -> None:
    """Refuse groups that leave nothing to train together, or an evaluation that would leak.

    Raises:
        ConfigError: With the way out.
    """
    config = workload.config
    if not any(map(groups.is_shared, trainable_names(model))):
        key = "personal" if config.groups.personal else "frozen"
        rule = (
            "leaves no shared parameter that local steps train; leave some out, or take "
            "strategy=local, where nothing is shared"
        )
        raise ConfigError([Problem(f"groups.{key}", getattr(config.groups, key), rule)])
    if config.partition.scheme == "own" and clients_evaluate(strategy, workload, groups):
        rule = (
            "leaves models with clients that only they could judge, and with partition.scheme=own "
            f"they have no {workload.noun} held out to judge them by"
        )
        raise ConfigError(
            [
                Problem("groups.personal", config.groups.personal, f"{rule}; leave it out")
                if strategy.has_global_model
                else Problem("strategy", config.strategy, f"{rule}; take another, such as fedavg")
            ]
        )
    if config.privacy.is_private and clients_evaluate(strategy, workload, groups):
        rule = (
            "has clients judge models of their own, and what they tell of them nothing would "
            "noise; leave it out, or keep only parts personal that an evaluation does not read"
        )
        raise ConfigError([Problem("groups.personal", config.groups.personal, rule)])


def _nobody_yet(dataset: Dataset, num_clients: int) -> Partition:
    """A partition of which nothing is known but how many clients it has."""
    return Partition(
        scheme={"scheme": "own"},
        source=dataset.name,
        num_examples=0,
        seed=0,
        failed_attempts=(),
        clients=tuple(np.zeros(0, np.int64) for _ in range(num_clients)),
        class_counts=np.zeros((num_clients, len(dataset.class_names)), np.int64),
    )


def _deal(data_sha256: str, partition: Partition) -> str:
    """Digest of who holds which image."""
    digest = hashlib.sha256(data_sha256.encode())
    for indices in partition.clients:
        digest.update(len(indices).to_bytes(8, "big") + np.asarray(indices, np.int64).tobytes())
    return digest.hexdigest()


def _privacy(config: RunConfig, sizes: list[int]) -> PrivacyPlan | None:
    if config.privacy.is_private:
        units = sizes if config.privacy.is_example_level else [len(sizes)]
        refuse_large_delta(config.privacy, units)
    return plan_privacy(config, range(len(sizes)))


def forget_preparation() -> None:
    """Let the last preparation go; loaded data stays until `workloads.table.forget_data`."""
    _prepare.cache_clear()
