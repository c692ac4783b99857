"""Dealing training images to clients, through flwr-datasets' partitioners.

Each attempt shuffles the images and deals them once under a seed derived from the run's seed and
the attempt's number. An attempt that leaves a client short is put on record and the next is made.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core.config import PartitionConfig
from core.errors import DataError
from core.seeds import derive_seed, numpy_generator
from core.workload import Dataset, DealtInUnits
from data.partition import FailedAttempt, Indices, Partition

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_SEEDS = 2**31


class _AttemptError(Exception):
    """One attempt dealt nothing usable; the message says why."""


def load_or_make_partition(dataset: Dataset, config: PartitionConfig, seed: int) -> Partition:
    """Read the partition that ``config.file`` names, or make one.

    Args:
        dataset: Its training examples are dealt.
        config: How they are dealt; of a file only ``clients`` and ``min_examples`` are asked for.
        seed: The run's seed.

    Raises:
        DataError: The file does not fit the images or the configuration; or as `make_partition`.
    """
    labels, num_classes = dataset.train_labels.numpy(), len(dataset.class_names)
    units = dataset.train_units.numpy() if isinstance(dataset, DealtInUnits) else None
    if not config.file:
        return make_partition(labels, num_classes, dataset.name, config, seed, units=units)
    partition = Partition.read(Path(config.file).expanduser())
    expected: dict[str, tuple[object, object]] = {
        "data.source": (partition.source, dataset.name),
        "number of training examples": (partition.num_examples, len(labels)),
        "number of classes": (partition.class_counts.shape[-1], num_classes),
        "partition.clients": (len(partition.clients), config.clients),
    }
    problems = [
        f"{what} is {has} in the file and {wants} here"
        for what, (has, wants) in expected.items()
        if has != wants
    ]
    if not problems:
        counts = _class_counts(labels, num_classes, partition.clients)
        smallest = min(len(client) for client in partition.clients)
        if not np.array_equal(counts, partition.class_counts):
            problems.append("its class counts are not those of the examples here")
        elif smallest < config.min_examples:
            problems.append(
                f"a client holds {smallest} examples, below partition.min-examples="
                f"{config.min_examples}"
            )
        elif units is not None and _num_divided(units, partition.clients):
            problems.append(
                f"it divides {_num_divided(units, partition.clients)} units of examples that "
                "belong together, such as clips of one video, among clients"
            )
    if problems:
        raise DataError(
            f"partition.file={config.file} does not fit: {'; '.join(problems)}; change these, or "
            "leave partition.file empty to make a partition"
        )
    return partition


def make_partition(
    labels: Indices,
    num_classes: int,
    source: str,
    config: PartitionConfig,
    seed: int,
    *,
    units: Indices | None = None,
) -> Partition:
    """Deal every training image to one client.

    The schemes:

    - ``iid``: sizes equal to within one image.
    - ``dirichlet``: the rule of NIID-Bench (Li et al., "Federated Learning on Non-IID Data Silos",
      ICDE 2022): class by class, shares drawn from Dirichlet(alpha) over the clients, the share of
      a client above the mean size set to zero. NIID-Bench zeroes a client of exactly the mean size
      too, which shows where classes are as large as the mean client and alpha is near 0.01: of
      5,000 balanced labels, 10 clients hold 2.11 classes each in place of 1.97.
    - ``pathological``: each client holds exactly ``classes_per_client`` classes, drawn so that
      all classes are dealt and each is divided evenly among as many clients as any other, to
      within one (McMahan et al., AISTATS 2017, in the form of NIID-Bench's "#C=k").
    - ``quantity``: shares of all images drawn from Dirichlet(alpha), class mix IID (NIID-Bench).

    Args:
        labels: int64, shape (N,), in [0, `num_classes`).
        num_classes: Number of classes (C).
        source: Name of the data source, for the record.
        config: Scheme and parameters.
        seed: The run's seed; the same gives the same partition.
        units: int64, shape (N,): examples of one unit go to one client. Units are dealt as single
            examples would be, each by the label of its first. None where all examples stand alone.

    Raises:
        DataError: The settings cannot be met, or were not in ``config.max_attempts`` attempts.
    """
    if units is not None and len(np.unique(units)) < len(units):
        return _of_units(labels, num_classes, source, config, seed, units)
    _refuse_infeasible(labels, config)
    deal, parameters = _SCHEMES[config.scheme]
    failed: list[FailedAttempt] = []
    for attempt in range(config.max_attempts):
        attempt_seed = derive_seed(seed, "partition", attempt) % _SEEDS
        order = numpy_generator(derive_seed(attempt_seed, "order")).permutation(len(labels))
        try:
            dealt = deal(labels[order], config, attempt_seed)
            smallest = min(len(rows) for rows in dealt)
            if smallest < config.min_examples:
                raise _AttemptError(f"a client was dealt {smallest} examples")
        except _AttemptError as reason:
            failed.append(FailedAttempt(attempt, attempt_seed, str(reason)))
            continue
        clients = tuple(np.sort(order[rows]) for rows in dealt)
        assert len(np.unique(np.concatenate(clients))) == len(labels) == sum(map(len, clients))
        return Partition(
            scheme={
                "scheme": config.scheme,
                "clients": config.clients,
                "min_examples": config.min_examples,
                **{name: getattr(config, name) for name in parameters},
            },
            source=source,
            num_examples=len(labels),
            seed=attempt_seed,
            failed_attempts=tuple(failed),
            clients=clients,
            class_counts=_class_counts(labels, num_classes, clients),
        )
    given = "".join(f" partition.{n.replace('_', '-')}={getattr(config, n)}" for n in parameters)
    relax = "raise partition.alpha or partition.max-attempts, or " if "alpha" in parameters else ""
    raise DataError(
        f"partition.scheme={config.scheme}{given} did not give each of partition.clients="
        f"{config.clients} at least partition.min-examples={config.min_examples} of {len(labels)} "
        f"examples in partition.max-attempts={config.max_attempts}; the last time "
        f"{failed[-1].reason}; {relax}lower partition.min-examples or partition.clients"
    )


def _of_units(
    labels: Indices,
    num_classes: int,
    source: str,
    config: PartitionConfig,
    seed: int,
    units: Indices,
) -> Partition:
    """Deal units by their first examples, and the other examples after them."""
    _, firsts, unit_of = np.unique(units, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    dealt = make_partition(labels[firsts[order]], num_classes, source, config, seed)
    owner = np.empty(len(order), np.int64)
    for client, mine in enumerate(dealt.clients):
        owner[order[mine]] = client
    clients = tuple(np.flatnonzero(owner[unit_of] == k) for k in range(len(dealt.clients)))
    return dataclasses.replace(
        dealt,
        num_examples=len(labels),
        clients=clients,
        class_counts=_class_counts(labels, num_classes, clients),
    )


def _num_divided(units: Indices, clients: Sequence[Indices]) -> int:
    """Units that more than one client has examples of."""
    held = np.concatenate([np.unique(units[client]) for client in clients])
    return int((np.unique(held, return_counts=True)[1] > 1).sum())


def _class_counts(
    labels: Indices, num_classes: int, clients: Sequence[Indices]
) -> npt.NDArray[np.int64]:
    return np.stack([np.bincount(labels[client], minlength=num_classes) for client in clients])


def refuse_too_few(num_examples: int, config: PartitionConfig) -> None:
    """Refuse what `make_partition` would refuse of any so many examples, before they are at hand.

    Args:
        num_examples: Training examples, or more than there may turn out to be.
        config: Who deals them; clients that bring their own are dealt none.

    Raises:
        DataError: Not every client can have `config.min_examples`.
    """
    if config.scheme in _SCHEMES and (problems := _too_few(num_examples, config)):
        raise DataError(problems[0])


def _too_few(num_examples: int, config: PartitionConfig) -> list[str]:
    if config.clients * config.min_examples <= num_examples:
        return []
    return [
        f"partition.clients={config.clients} times partition.min-examples={config.min_examples} "
        f"must be at most the {num_examples} training examples"
    ]


def _refuse_infeasible(labels: Indices, config: PartitionConfig) -> None:
    counts = np.unique(labels, return_counts=True)[1]
    problems = _too_few(len(labels), config)
    if config.scheme == "pathological":
        each, slots = config.classes_per_client, config.clients * config.classes_per_client
        if each > len(counts):
            problems.append(
                f"partition.classes-per-client={each} must be at most the {len(counts)} classes"
            )
        if slots < len(counts):
            problems.append(
                f"partition.clients={config.clients} times partition.classes-per-client={each} "
                f"must be at least the {len(counts)} classes, or some class is dealt to nobody"
            )
        most = -(-slots // len(counts))
        if most > counts.min():
            problems.append(
                f"partition.clients={config.clients} times partition.classes-per-client={each} "
                f"divides a class among {most} clients, which must be at most the {counts.min()} "
                "examples of the smallest class"
            )
    if problems:
        raise DataError("; ".join(problems))


def _iid(labels: Indices, config: PartitionConfig, seed: int) -> list[Indices]:
    from flwr_datasets.partitioner import IidPartitioner

    return _deal(IidPartitioner(config.clients), labels)


def _dirichlet(labels: Indices, config: PartitionConfig, seed: int) -> list[Indices]:
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=config.clients,
        partition_by="label",
        alpha=config.alpha,
        min_partition_size=config.min_examples,
        self_balancing=True,
        seed=seed,
    )
    try:
        # Where every client with a share of a class is full, the rule divides zero by zero and the
        # library would deal the whole class to the last client.
        with np.errstate(invalid="raise"):
            return _deal(partitioner, labels)
    except FloatingPointError as error:
        raise _AttemptError("only clients above the mean size had a share of some class") from error
    except ValueError as error:
        raise _AttemptError(f"each draw left a client short ({error})") from error


def _pathological(labels: Indices, config: PartitionConfig, seed: int) -> list[Indices]:
    """Deal classes out as slots, since the library's own draws may leave classes to nobody.

    The library divides every class among its slots; slot s holds class s modulo C.
    """
    from flwr_datasets.partitioner import PathologicalPartitioner

    num_classes = len(np.unique(labels))
    num_slots = config.clients * config.classes_per_client
    partitioner = PathologicalPartitioner(
        num_partitions=num_slots,
        partition_by="label",
        num_classes_per_partition=1,
        class_assignment_mode="deterministic",
        seed=seed,
    )
    slots = _deal(partitioner, labels)
    generator = numpy_generator(derive_seed(seed, "classes"))
    free = [list(range(label, num_slots, num_classes)) for label in range(num_classes)]
    clients = []
    for _ in range(config.clients):
        # Taking the classes with the most free slots never leaves the last client without enough
        # different ones.
        tie_break = generator.random(num_classes)
        most_free_first = np.lexsort((tie_break, np.array([-len(left) for left in free])))
        chosen = most_free_first[: config.classes_per_client]
        clients.append(np.concatenate([slots[free[label].pop()] for label in chosen]))
    return clients


def _quantity(labels: Indices, config: PartitionConfig, seed: int) -> list[Indices]:
    from flwr_datasets.partitioner import SizePartitioner

    generator = numpy_generator(derive_seed(seed, "sizes"))
    shares = generator.dirichlet(np.full(config.clients, config.alpha))
    ends = np.rint(np.cumsum(shares[:-1]) * len(labels)).astype(np.int64)
    sizes: list[int] = np.diff(ends, prepend=0, append=len(labels)).tolist()
    if min(sizes) < 1:
        raise _AttemptError("a client was dealt 0 examples")
    return _deal(SizePartitioner(sizes), labels)


def _deal(partitioner: Partitioner, labels: Indices) -> list[Indices]:
    """Rows of `labels` per partition, from a data set of labels alone."""
    from datasets import Dataset

    class Labels(Dataset):  # type: ignore[misc]
        """A selection of it is the rows selected: a data set apiece takes 10,000 clients 20 s."""

        def select(self, indices: Iterable[int], **_: object) -> Indices:
            return np.fromiter(indices, np.int64)

    partitioner.dataset = Labels.from_dict({"label": labels})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [partitioner.load_partition(i) for i in range(partitioner.num_partitions)]


_Deal = Callable[[Indices, PartitionConfig, int], list[Indices]]
_SCHEMES: Mapping[str, tuple[_Deal, tuple[str, ...]]] = {
    "iid": (_iid, ()),
    "dirichlet": (_dirichlet, ("alpha",)),
    "pathological": (_pathological, ("classes_per_client",)),
    "quantity": (_quantity, ("alpha",)),
}
"""How each scheme deals, and the configuration that it alone reads."""
