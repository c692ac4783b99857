"""One frozen configuration, parsed at one place from flat ``section.key`` scalars.

The same keys reach Tessera from the command line (``tessera run rounds=5``), from Flower
(``flwr run . --run-config "rounds=5"``, defaults in ``pyproject.toml``) and from Python. Sections
that belong to a strategy are declared in that strategy's file and handed to `parse`, so that the
core knows no strategy by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, get_type_hints

from core.errors import ConfigError, Problem
from core.plugins import is_plugin, plugin_content
from core.records import RunFolder

Scalar = bool | int | float | str
Section = TypeVar("Section")


NOT_SETTINGS = frozenset(
    {
        "name",
        "runs",
        "resume",
        "checkpoint-every",
        "data.root",
        "data.download",
        "engine.kind",
        "engine.workers",
        "engine.gpus-per-worker",
        "engine.ray-address",
        "engine.join-timeout-s",
        "sinks.wandb",
        "sinks.mlflow",
        "sinks.project",
    }
)
"""Keys that cannot change a result: names, folders, and where clients run."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one key accepts.

    Attributes:
        meaning: One sentence for ``tessera run --help``.
        text: What is allowed, as a clause that follows "must be".
        allows: Whether a value of the right type is allowed.
        choices: Closed set of spellings, for suggestions; empty where the set is open.
        read_if: The key is read only where this other key has one of these values; None if always.
        names_file: Whether a value names files of the machine that reads it, which a server may
            not choose on a client's.
        is_cache: Whether it names a folder of what can be made again; clients on machines of their
            own keep theirs with their state.
    """

    meaning: str
    text: str
    allows: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    read_if: tuple[str, tuple[str, ...]] | None = None
    names_file: Callable[[str], bool] = lambda value: False
    is_cache: bool = False


def number(
    default: Any,
    meaning: str,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    read_if: tuple[str, tuple[str, ...]] | None = None,
) -> Any:
    """A numeric key within bounds; `least` and `most` inclusive, `above` and `below` exclusive."""
    parts = [f"at least {least:.10g}"] if least > -math.inf else []
    parts += [f"above {above:.10g}"] if above > -math.inf else []
    parts += [f"at most {most:.10g}"] if most < math.inf else []
    parts += [f"below {below:.10g}"] if below < math.inf else []
    kind = "a whole number" if isinstance(default, int) else "a number"
    text = f"{kind} {' and '.join(parts)}" if parts else kind

    def allows(value: float) -> bool:
        return math.isfinite(value) and least <= value <= most and above < value < below

    return field(default=default, metadata={"rule": Rule(meaning, text, allows, (), read_if)})


def choice(
    default: str,
    meaning: str,
    choices: Iterable[str],
    *,
    plugin: str = "",
    prefixes: Mapping[str, str] | None = None,
    read_if: tuple[str, tuple[str, ...]] | None = None,
    note: str = "",
    names_file: Callable[[str], bool] = lambda value: False,
) -> Any:
    """A key with a closed set of names, and where stated ``FILE.py:NAME`` or ``prefix:VALUE``.

    `note` tells why a name that users may expect is not among them.
    """
    names, heads = tuple(choices), dict(prefixes or {})
    forms = [*names, *(f"{head}:{value}" for head, value in heads.items())]
    if plugin:
        forms.append(f"FILE.py:{plugin}")

    def allows(value: str) -> bool:
        head, separator, rest = value.partition(":")
        return (
            value in names
            or bool(separator and rest and head in heads)
            or bool(plugin and is_plugin(value))
        )

    text = "one of " + ", ".join(forms) + (f"; {note}" if note else "")
    rule = Rule(meaning, text, allows, names, read_if, names_file)
    return field(default=default, metadata={"rule": rule})


def flag(default: bool, meaning: str) -> Any:
    """A key that is true or false."""
    rule = Rule(meaning, "true or false", lambda value: True, ("true", "false"))
    return field(default=default, metadata={"rule": rule})


def text(
    default: str,
    meaning: str,
    allowed: str = "any text",
    allows: Callable[[str], bool] = lambda value: True,
    read_if: tuple[str, tuple[str, ...]] | None = None,
    names_file: Callable[[str], bool] = lambda value: False,
    is_cache: bool = False,
) -> Any:
    """A free text key."""
    rule = Rule(meaning, allowed, allows, (), read_if, names_file, is_cache)
    return field(default=default, metadata={"rule": rule})


def _is_file_name(value: str) -> bool:
    if len(value.encode()) > 200 or not value.isprintable():
        return False
    return value == "" or (value not in {".", ".."} and not set(value) & set("/\\"))


def _are_images_on_disk(value: str) -> bool:
    return value.startswith(("parquet:", "folder:")) or is_plugin(value)


def _is_ray_address(value: str) -> bool:
    host, separator, port = value.rpartition(":")
    if not separator:
        return value in {"", "auto"}
    return bool(host) and "/" not in host and port.isascii() and port.isdigit()


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which images, and how they are split."""

    source: str = choice(
        "digits",
        "data set; digits is embedded",
        ["digits", "mnist", "fashion-mnist", "cifar10", "cifar100"],
        prefixes={"parquet": "DIR", "folder": "DIR"},
        plugin="FUNCTION",
        names_file=_are_images_on_disk,
    )
    root: str = text(
        ".data",
        "folder that torchvision data sets are read from",
        "a folder",
        lambda value: bool(value),
    )
    download: bool = flag(False, "let torchvision download a data set that is missing")
    validation_fraction: float = number(
        0.1, "share of the training images held out for validation", above=0, below=0.9
    )
    test_fraction: float = number(
        0.2, "share held out for test where the source has no test split", above=0, below=0.9
    )
    train_examples: int = number(
        0, "use this many training images, an equal share of each class; 0 uses all", least=0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionConfig:
    """How training images are dealt to clients."""

    scheme: str = choice(
        "dirichlet",
        "how images are dealt to clients; own deals none: clients of a network bring their own",
        ["iid", "dirichlet", "pathological", "quantity", "own"],
        read_if=("partition.file", ("",)),
    )
    clients: int = number(10, "number of clients (K)", least=1, most=1_000_000)
    alpha: float = number(
        0.5,
        "Dirichlet concentration; smaller is more skewed",
        above=0,
        read_if=("partition.scheme", ("dirichlet", "quantity")),
    )
    min_examples: int = number(10, "fewest images a client may hold", least=1)
    classes_per_client: int = number(
        2,
        "classes per client of the pathological scheme",
        least=1,
        read_if=("partition.scheme", ("pathological",)),
    )
    max_attempts: int = number(
        100, "seeds tried before a partition that misses min-examples is refused", least=1
    )
    file: str = text(
        "", "read the partition from this JSON file instead; empty makes one", names_file=bool
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network that is trained."""

    name: str = choice(
        "convnet", "architecture", ["convnet", "cnn", "resnet18", "resnet32"], plugin="FUNCTION"
    )
    width: int = number(128, "channels of each ConvNet block", least=1, most=8_192)
    depth: int = number(
        0, "ConvNet blocks; 0 takes 3, or 2 for images below 16 pixels", least=0, most=8
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupsConfig:
    """What becomes of parts of the model, each by the name of a module or parameter in it."""

    personal: str = text(
        "",
        "parts that stay with each client, which trains its own, such as classifier; names "
        "separated by commas",
        "names separated by commas",
    )
    frozen: str = text(
        "",
        "parts that nobody trains or sends; names separated by commas",
        "names separated by commas",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Gradient training on real data: clients' local epochs, `local` and `centralized`."""

    optimizer: str = choice(
        "sgd",
        "of local steps; adam and adamw start each round anew, adamw decays weights apart from the "
        "gradient",
        ["sgd", "adam", "adamw"],
    )
    learning_rate: float = number(0.05, "learning rate (eta)", above=0)
    momentum: float = number(
        0.0, "SGD momentum", least=0, below=1, read_if=("train.optimizer", ("sgd",))
    )
    weight_decay: float = number(0.0, "weight decay", least=0)
    batch_size: int = number(32, "examples per step; the last batch may be smaller", least=1)
    local_epochs: int = number(
        1, "passes over the client's images per round (E)", least=1, most=1_000_000
    )
    weighting: str = choice(
        "auto",
        "weight of a client's reply in an average: by its examples, or equal; auto is equal in "
        "private runs, which tell no counts, and by examples elsewhere",
        ["auto", "examples", "equal"],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Where clients are computed. Changes no result but by thread counts and timeout."""

    kind: str = choice(
        "auto",
        "how clients run; auto takes ray where there is a GPU or engine.ray-address, processes "
        "from 4 cores on, and in-process elsewhere",
        ["auto", "in-process", "processes", "ray"],
    )
    workers: int = number(
        0,
        "processes, or Ray actors, that clients share; 0 takes one per core and GPU share",
        least=0,
        read_if=("engine.kind", ("auto", "processes", "ray")),
        most=65_536,
    )
    gpus_per_worker: float = number(
        0.0,
        "share of a GPU per Ray actor; 0 divides the GPUs among the actors",
        least=0,
        read_if=("engine.kind", ("auto", "ray")),
    )
    ray_address: str = text(
        "",
        "join the Ray cluster at this address, and run clients on all its nodes; empty starts a "
        "Ray of the run's own",
        "HOST:PORT of the cluster's head, or auto for the cluster that this machine belongs to",
        _is_ray_address,
        read_if=("engine.kind", ("auto", "ray")),
    )
    client_threads: int = number(
        1, "torch threads per client; part of the result's identity", least=1
    )
    server_threads: int = number(
        1, "torch threads of the server; part of the result's identity", least=1
    )
    device: str = choice(
        "auto",
        "device of clients and server; auto takes cuda where there is one",
        ["auto", "cpu", "cuda"],
    )
    precision: str = choice(
        "float32",
        "how products and convolutions of clients' and the server's training are computed; tf32 "
        "is for GPUs, bf16 fast only where the hardware has it; evaluation is in float32",
        ["float32", "tf32", "bf16"],
    )
    round_timeout_s: float = number(
        0.0,
        "seconds to wait for a round's replies; 0 waits for all, and on a network for one hour",
        least=0,
    )
    join_timeout_s: float = number(
        120.0, "seconds within which all clients of a network must have joined", above=0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortConfig:
    """Who is asked in a round."""

    size: int = number(
        0, "clients whose replies a round takes, drawn anew each round; 0 takes all", least=0
    )
    over_sampling: float = number(
        0.0,
        "share of further clients asked in each round, so that cohort.size replies come in even "
        "if some fail; the round closes when they have",
        least=0,
        most=10,
    )
    quorum: int = number(
        1, "fewest replies of which a round is made; one with fewer is discarded", least=1
    )
    max_empty_rounds: int = number(
        3,
        "rounds in a row without a quorum of replies that count, after which the run is given up",
        least=1,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultsConfig:
    """Failures that are simulated, drawn from the seed for each client and round."""

    dropout_rate: float = number(
        0.0, "probability that a client asked never answers", least=0, most=1
    )
    straggler_rate: float = number(
        0.0, "probability that a client's reply is delayed", least=0, most=1
    )
    straggler_delay_s: float = number(
        10.0, "mean of that delay, exponential; in simulated seconds, not waited for", above=0
    )
    deadline_s: float = number(
        0.0, "simulated seconds after which a round closes; 0 waits for all", least=0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackConfig:
    """Clients that are made malicious, drawn from the seed once for the run."""

    kind: str = choice(
        "none",
        "what malicious clients do: send the opposite of their update, send it scaled, or train "
        "on labels in reverse order",
        ["none", "sign-flip", "scale", "label-flip"],
    )
    fraction: float = number(
        0.2,
        "share of the clients that are malicious, rounded",
        least=0,
        most=1,
        read_if=("attack.kind", ("sign-flip", "scale", "label-flip")),
    )
    factor: float = number(
        10.0, "what a scaled update is multiplied by", read_if=("attack.kind", ("scale",))
    )


EXAMPLE_LEVEL = ("dp-sgd", "gradient", "feature")
"""Mechanisms that protect single examples from everybody but the client that holds them."""

_PRIVATE = (*EXAMPLE_LEVEL, "client")


def _private(*mechanisms: str) -> tuple[str, tuple[str, ...]]:
    return ("privacy.mechanism", mechanisms or _PRIVATE)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyConfig:
    """Differential privacy: what is noised, by how much, and what it may cost.

    Every number here is a constant of the configuration, the same for all clients.
    """

    mechanism: str = choice(
        "none",
        "what is clipped and noised: the gradient of each example in local training (dp-sgd), in "
        "FedDM the matching gradient of each example (gradient) or its embedding (feature), or at "
        "a trusted server each client's update (client)",
        ["none", *_PRIVATE],
    )
    epsilon: float = number(
        0.0,
        "budget of the whole run; what would exceed it is not done. 0 sets none, and needs "
        "privacy.noise-multiplier",
        least=0,
        read_if=_private(),
    )
    noise_multiplier: float = number(
        0.0,
        "standard deviation of the noise in units of the clip (sigma); 0 takes the least that "
        "keeps privacy.epsilon",
        least=0,
        read_if=_private(),
    )
    delta: float = number(
        1e-5,
        "probability with which epsilon may fail; below 1 over the examples of a client",
        above=0,
        below=1,
        read_if=_private(),
    )
    clip: float = number(
        1.0,
        "largest Euclidean norm that one example's (or one client's) part may have in a sum (C)",
        least=1e-6,
        read_if=_private(),
    )
    sampling_rate: float = number(
        0.05,
        "probability with which each example takes part in a step (q)",
        above=0,
        most=1,
        read_if=_private(*EXAMPLE_LEVEL),
    )
    steps: int = number(
        20,
        "noised steps of a client per round: steps of local training, or embeddings released; "
        "mechanism gradient takes feddm.iterations",
        least=1,
        most=1_000_000,
        read_if=_private("dp-sgd", "feature"),
    )
    accountant: str = choice(
        "prv",
        "what epsilon is computed by, in calibration, enforcement and report alike",
        ["prv", "rdp"],
        read_if=_private(),
        note="gdp is refused, for it understates epsilon",
    )
    count_floor: float = number(
        1.0,
        "least noisy count that a class's noisy sum is divided by",
        above=0,
        read_if=_private("feature"),
    )
    count_scale: float = number(
        1.0,
        "constant coordinate that is appended to each embedding, from whose sum counts are read",
        above=0,
        read_if=_private("feature"),
    )
    ledger: str = text(
        "",
        "folder of clients' ledgers, shared by all runs on the same data, whose spendings add up; "
        "empty keeps them in the run folder, as if each run had clients of its own",
    )

    @property
    def is_private(self) -> bool:
        """Whether anything is noised."""
        return self.mechanism != "none"

    @property
    def is_example_level(self) -> bool:
        """Whether clients themselves clip and noise."""
        return self.mechanism in EXAMPLE_LEVEL


_CANARIES = ("canaries.kind", ("noise", "mislabelled", "members"))


@dataclass(frozen=True, kw_only=True, slots=True)
class CanariesConfig:
    """Examples by which an audit recognises what a run gives away; see `data.canaries`."""

    kind: str = choice(
        "none",
        "what an audit puts into clients' data, each with probability 1/2: images of noise, "
        "held-out images with a wrong label, or (members) clients' own images, which are left out "
        "otherwise",
        ["none", "noise", "mislabelled", "members"],
    )
    count: int = number(
        256,
        "canaries of all clients together (m)",
        least=1,
        most=1_000_000,
        read_if=_CANARIES,
    )
    seed: int = number(
        0, "seed of which canaries, and whose", least=0, most=2**31 - 1, read_if=_CANARIES
    )
    coins: int = number(
        0,
        "seed of the coins that decide which canaries are included",
        least=0,
        most=2**31 - 1,
        read_if=_CANARIES,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SinksConfig:
    """Where figures go besides the run folder and its TensorBoard events."""

    wandb: bool = flag(False, "log to Weights & Biases too; needs the extra tessera-fl[wandb]")
    mlflow: bool = flag(False, "log to MLflow too; needs the extra tessera-fl[mlflow]")
    project: str = text(
        "tessera",
        "project of Weights & Biases, experiment of MLflow",
        "a name",
        lambda value: bool(value.strip()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """A whole run. Field ``a_b`` is the key ``a-b``; a section's field is ``section.a-b``."""

    strategy: str = choice("feddm", "federated method", [], plugin="CLASS")
    workload: str = choice(
        "classification", "what is trained and how it is judged", [], plugin="CLASS"
    )
    rounds: int = number(10, "communication rounds (R)", least=1, most=100_000)
    seed: int = number(0, "seed that every random choice derives from", least=0, most=2**31 - 1)
    name: str = text(
        "",
        "name of the run's folder; empty makes one from strategy, data and time",
        "a single folder name of at most 200 bytes",
        _is_file_name,
    )
    runs: str = text(
        ".runs", "folder that run folders are made in", "a folder", lambda value: bool(value)
    )
    start_from: str = text(
        "",
        "weights to start from: the folder of a run, or a .safetensors file; empty draws them by "
        "the seed",
    )
    resume: bool = flag(
        False, "on a network, go on with the run folder of this name; here it is an option"
    )
    evaluate_every: int = number(
        1, "rounds between evaluations; the last is always evaluated", least=1
    )
    checkpoint_every: int = number(
        1, "rounds between checkpoints; the last is always kept", least=1
    )
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cohort: CohortConfig = field(default_factory=CohortConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    canaries: CanariesConfig = field(default_factory=CanariesConfig)
    sinks: SinksConfig = field(default_factory=SinksConfig)
    options: Mapping[str, Any] = field(default_factory=dict)
    """The selected strategy's and workload's own sections, ``{"feddm": MatchingConfig(...)}``."""

    def section(self, kind: type[Section]) -> Section:
        """The section of type `kind`, of the strategy or the workload."""
        for value in self.options.values():
            if isinstance(value, kind):
                return value
        raise AssertionError(
            f"neither strategy {self.strategy!r} nor workload {self.workload!r} declares a section "
            f"{kind.__name__}"
        )

    @property
    def hides_counts(self) -> bool:
        """Whether a reply tells nothing of how much, and of which classes, its client holds."""
        return self.privacy.is_private

    @property
    def weighs_equally(self) -> bool:
        """Whether replies weigh equally in an average, whatever their clients hold."""
        return self.train.weighting == "equal" or (
            self.train.weighting == "auto" and self.hides_counts
        )

    def evaluates(self, round: int) -> bool:
        """Whether the model is judged after `round`."""
        return round % self.evaluate_every == 0 or round == self.rounds

    def folder_name(self, run_id: int) -> str:
        """Name of the run's folder; Flower's own id names it where the user did not."""
        return self.name or f"flower-{run_id}"

    def flat(self) -> dict[str, Scalar]:
        """The configuration as flat scalars, without sections of what is not selected."""
        return dict(_flatten(self, ""))

    def without_files(self) -> RunConfig:
        """The same, with its defaults where a key names files of the machine that reads it."""

        def of(rule: Rule, value: Scalar, default: Scalar) -> Scalar:
            return default if rule.names_file(str(value)) else value

        return cast(RunConfig, _mapped(self, of))

    def with_caches_in(self, folder: Path) -> RunConfig:
        """The same, with what can be made again kept in `folder`."""

        def of(rule: Rule, value: Scalar, default: Scalar) -> Scalar:
            return str(folder) if rule.is_cache else value

        return cast(RunConfig, _mapped(self, of))

    def identity(self) -> str:
        """A hash of all that can change a result.

        That is every key but `NOT_SETTINGS` and folders of what can be made again. A user's own
        file counts by its content, the images of a source on disk by its name alone.
        """
        kept = {
            key: _by_content(key, value)
            for key, value in self.with_caches_in(Path()).flat().items()
            if key not in NOT_SETTINGS
        }
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _by_content(name: str, value: Scalar) -> Scalar:
    if name == "start-from" and value:
        return _weights_content(Path(str(value)).expanduser())
    if name == "partition.file" and value:
        path = Path(str(value)).expanduser()
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else value
    return plugin_content(value) if isinstance(value, str) and is_plugin(value) else value


def _weights_content(path: Path) -> str:
    """A digest of the weights that a run starts from: of a folder, of its last checkpoint."""
    if path.is_dir():
        path = max(RunFolder(path).checkpoints(), default=(0, path))[1]
    if not path.is_file():
        return str(path)
    about = path.stat()
    return _file_digest(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=8)
def _file_digest(path: Path, num_bytes: int, modified_ns: int) -> str:
    """Of a file as it was then: every client's update asks for it, of a large file too."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """One configuration key as help, docs and pyproject show it."""

    name: str
    default: Scalar
    type: type
    rule: Rule


def _flatten(section: Any, prefix: str) -> Iterable[tuple[str, Scalar]]:
    for item in dataclasses.fields(section):
        value, name = getattr(section, item.name), prefix + item.name.replace("_", "-")
        if item.name == "options":
            for title, options in value.items():
                yield from _flatten(options, f"{title}.")
        elif dataclasses.is_dataclass(value):
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _mapped(section: Any, change: Callable[[Rule, Scalar, Scalar], Scalar]) -> Any:
    """A section and those in it, with `change` of each key's rule, value and default."""
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if item.name == "options":
            changes[item.name] = {title: _mapped(own, change) for title, own in value.items()}
        elif dataclasses.is_dataclass(value):
            changes[item.name] = _mapped(value, change)
        else:
            default = cast(Scalar, item.default)
            changes[item.name] = change(item.metadata["rule"], value, default)
    return dataclasses.replace(section, **changes)


def _keys_of(section: type, prefix: str) -> Iterable[Key]:
    hints = get_type_hints(section)
    for item in dataclasses.fields(section):
        name = prefix + item.name.replace("_", "-")
        if item.name == "options":
            continue
        if dataclasses.is_dataclass(hints[item.name]):
            yield from _keys_of(cast(type, hints[item.name]), f"{name}.")
        else:
            yield Key(name, cast(Scalar, item.default), hints[item.name], item.metadata["rule"])


class HasSections(Protocol):
    """A strategy or workload: a class that names the sections it reads."""

    @property
    def sections(self) -> Mapping[str, type]:
        """Frozen dataclasses by title."""


def section_faults(sections: Mapping[str, type], builtin: Iterable[HasSections]) -> list[str]:
    """What keeps a user's sections from being parsed beside those of `builtin`, as sentences."""
    faults: list[str] = []
    taken = {item.name.replace("_", "-") for item in dataclasses.fields(RunConfig)}
    known = {title: section for kind in builtin for title, section in kind.sections.items()}
    for title, section in sections.items():
        if title in taken or known.get(title, section) is not section:
            faults.append(f"its section {title!r} is taken; give it another name")
        elif not dataclasses.is_dataclass(section):
            faults.append(f"its section {title!r} is no dataclass")
        else:
            faults += [
                f"{title}.{item.name} has no rule; declare it with core.config.number, choice, "
                "flag or text"
                for item in dataclasses.fields(section)
                if "rule" not in item.metadata
            ]
    return faults


Readers = Mapping[str, Mapping[str, Iterable[str]]]
"""By the key ``strategy`` or ``workload``: its values, each with the sections that it reads."""


def keys(sections: Mapping[str, type], readers: Readers) -> list[Key]:
    """Every key, its default and its rule.

    Args:
        sections: Sections of strategies and workloads by name.
        readers: What reads which.
    """
    found = list(_keys_of(RunConfig, ""))
    for name, section in sections.items():
        found += _keys_of(section, f"{name}.")
    for place, key in enumerate(found):
        if key.name in readers:
            named = choice(str(key.default), key.rule.meaning, readers[key.name], plugin="CLASS")
            found[place] = dataclasses.replace(key, rule=named.metadata["rule"])
    return found


def _convert(key: Key, value: object) -> Scalar:
    """Convert `value` to the key's type; raises ValueError where it is not one."""
    if isinstance(value, str) and key.type is not str:
        if key.type is bool:
            return {"true": True, "false": False}[value.strip().lower()]
        if key.type is int:
            return int(value)
        return float(value)
    if key.type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not key.type:
        raise ValueError(value)
    return cast(Scalar, value)


def _closest(word: str, known: Iterable[str]) -> str:
    options = list(known)
    tails = [name for name in options if name.rpartition(".")[2] == word.replace("_", "-")]
    near = tails or difflib.get_close_matches(word.replace("_", "-"), options, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def parse(
    flat: Mapping[str, object],
    *,
    sections: Mapping[str, type],
    readers: Readers,
) -> RunConfig:
    """Parse flat scalars into a `RunConfig`, or refuse them with every problem at once.

    Args:
        flat: Values by key; text is converted to the key's type, other types must match.
        sections: Every section of a strategy or workload by name.
        readers: What reads which.

    Raises:
        ConfigError: One `Problem` per unknown key, value of the wrong type, value out of bounds,
            and key that the selected strategy and workload would not read.
    """
    known = {key.name: key for key in keys(sections, readers)}
    problems: list[Problem] = []
    values: dict[str, Scalar] = {}
    for name, given in flat.items():
        if name not in known:
            rule = "there is no such key" + (
                _closest(name, known) or "; `tessera run --help` lists all"
            )
            problems.append(Problem(name, str(given), rule))
            continue
        key = known[name]
        try:
            value = _convert(key, given)
            allowed = key.rule.allows(value)
        except (ValueError, KeyError, OverflowError):
            allowed = False
        if allowed:
            values[name] = value
        else:
            hint = _closest(str(given), key.rule.choices) if key.rule.choices else ""
            problems.append(Problem(name, str(given), f"must be {key.rule.text}{hint}"))
    chosen = {kind: str(values.get(kind, known[kind].default)) for kind in readers}
    selected = {kind: readers[kind].get(chosen[kind], sections) for kind in readers}
    read = [name for name in sections if any(name in names for names in selected.values())]
    for name, value in values.items():
        section = name.partition(".")[0]
        if section in sections and section not in read and value != known[name].default:
            kind, reading = _who_reads(section, readers)
            rule = (
                f"{kind} {chosen[kind]} does not read it (only {', '.join(reading)}); leave it out"
            )
            problems.append(Problem(name, str(value), rule))
        elif (condition := known[name].rule.read_if) and value != known[name].default:
            other, wanted = condition
            given = str(values.get(other, known[other].default))
            if given not in wanted:
                rule = f"is read only with {other}={' or '.join(wanted)}, not {given}; leave it out"
                problems.append(Problem(name, str(value), rule))
    if problems:
        raise ConfigError(problems)
    options: dict[str, Any] = {name: _build(sections[name], f"{name}.", values) for name in read}
    config = _build(RunConfig, "", values, options=options)
    if conflicts := list(_conflicts(config)):
        raise ConfigError(conflicts)
    return config


def _who_reads(section: str, readers: Readers) -> tuple[str, list[str]]:
    """Whether strategies or workloads read a section, and which of them."""
    for kind, names in readers.items():
        if reading := [name for name, sections in names.items() if section in sections]:
            return kind, reading
    raise AssertionError(f"nothing reads section {section}")


def _conflicts(config: RunConfig) -> Iterable[Problem]:
    """Keys that are allowed one by one and not together."""
    cohort, faults, clients = config.cohort, config.faults, config.partition.clients
    if cohort.size > clients:
        rule = f"must be at most partition.clients={clients}; 0 takes all"
        yield Problem("cohort.size", str(cohort.size), rule)
    wanted = cohort.size or clients
    if cohort.quorum > wanted:
        rule = f"must be at most the {wanted} replies that a round takes, or no round could be made"
        yield Problem("cohort.quorum", str(cohort.quorum), rule)
    if config.resume and not config.name:
        rule = "needs the name of the run folder; give name=..."
        yield Problem("resume", "true", rule)
    if cohort.over_sampling and not 0 < cohort.size < clients:
        rule = (
            f"adds to cohort.size={cohort.size}, which must be from 1 to {clients - 1}, below "
            f"partition.clients={clients}, to leave somebody to add"
        )
        yield Problem("cohort.over-sampling", f"{cohort.over_sampling:g}", rule)
    if faults.straggler_rate and not (faults.deadline_s or cohort.over_sampling):
        rule = "a late reply changes nothing without faults.deadline-s or cohort.over-sampling"
        yield Problem("faults.straggler-rate", f"{faults.straggler_rate:g}", rule)
    if config.privacy.ledger and not config.privacy.is_private:
        rule = "nothing is charged without privacy.mechanism; leave it out"
        yield Problem("privacy.ledger", config.privacy.ledger, rule)
    attack = config.attack
    if attack.kind != "none" and attack.fraction and not round(attack.fraction * clients):
        rule = f"rounds to no malicious client of partition.clients={clients}; raise it, or 0"
        yield Problem("attack.fraction", f"{attack.fraction:g}", rule)
    if not faults.straggler_rate:
        for key, value, default in (
            ("faults.deadline-s", faults.deadline_s, 0.0),
            ("faults.straggler-delay-s", faults.straggler_delay_s, 10.0),
        ):
            if value != default:
                rule = "is read only with faults.straggler-rate above 0; leave it out"
                yield Problem(key, f"{value:g}", rule)


def _build(
    section: type[Section], prefix: str, values: Mapping[str, Scalar], **extra: Any
) -> Section:
    hints, arguments = get_type_hints(section), dict(extra)
    for item in dataclasses.fields(cast(Any, section)):
        name = prefix + item.name.replace("_", "-")
        if item.name in extra:
            continue
        if dataclasses.is_dataclass(hints[item.name]):
            arguments[item.name] = _build(cast(Any, hints[item.name]), f"{name}.", values)
        elif name in values:
            arguments[item.name] = values[name]
    return section(**arguments)


def parse_assignments(words: Iterable[str]) -> dict[str, str]:
    """Split ``key=value`` words as typed on a command line.

    Raises:
        ConfigError: A word without ``=``, or a key given twice.

    >>> parse_assignments(["rounds=3", "data.source=folder:a=b"])
    {'rounds': '3', 'data.source': 'folder:a=b'}
    """
    found: dict[str, str] = {}
    problems = []
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            problems.append(Problem(word, "", "write key=value, such as rounds=5"))
        elif key in found:
            problems.append(Problem(key, value, f"given twice, before as {found[key]}"))
        found[key] = value
    if problems:
        raise ConfigError(problems)
    return found
