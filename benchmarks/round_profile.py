"""Where the time of one of Tessera's rounds goes: each piece on its own, with the real objects."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import IN_PROCESS, PROCESSES, RAY
from benchmarks.machine import MATRIX_SIDE, matrix_flops_per_s
from benchmarks.peers.given import Given, train_one_epoch
from benchmarks.work import Work, WorkSize, make_work
from core.client_state import ClientStore
from core.examples import labelled
from core.memory import keep_freed_memory
from core.parameters import ParameterVector, weights_of
from core.records import ClientRecord, RoundRecord, RunFolder
from core.wire import Record
from engine.simulation import simulate
from pairing.configuration import parse_config
from server.checkpoint import Checkpoint
from server.prediction import reply_spec
from server.preparation import Preparation, forget_preparation, prepare
from strategies.base import Reply, ServerTask, arrays_of, tensors_of
from strategies.flower import from_flower, serialise, to_flower
from strategies.local_sgd import train_locally
from workloads.table import forget_data

REPEATS = 15
LOCAL_EPOCH = "local epoch, whole"


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of a round.

    Attributes:
        place: Which process does it.
        name: What is done.
        wall_ms: Median of its wall time.
        cpu_ms: Median of its CPU time in this process.
        times: How often a round does it.
    """

    place: str
    name: str
    wall_ms: float
    cpu_ms: float
    times: int


def profile(folder: Path, size: WorkSize | None = None) -> str:
    """Measure all pieces on one thread; returns them as a table, and how fast training is.

    Freed memory is kept, as servers and clients keep it.

    Args:
        folder: For the work and what the pieces write.
        size: How much there is to do; None takes that of the comparison.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        work = make_work(folder / "work", size or WorkSize(rounds=2))
        pieces, epoch_flop = _pieces(work, folder)
        pieces += _transport(work)
        matrix = matrix_flops_per_s(torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
        forget_preparation()
        forget_data()
    epoch_ms = next(piece.cpu_ms for piece in pieces if piece.name == LOCAL_EPOCH)
    rate = epoch_flop / epoch_ms * 1e3
    return (
        f"{to_markdown(pieces)}\na client's local epoch: {epoch_flop / 1e9:.2f} GFLOP, "
        f"{rate / 1e9:.1f} GFLOP/s, {rate / matrix:.0%} of the {matrix / 1e9:.0f} GFLOP/s of a "
        f"{MATRIX_SIDE} x {MATRIX_SIDE} matrix product\n"
    )


def to_markdown(pieces: Sequence[Piece]) -> str:
    """The pieces as a table."""
    heads = ("where", "piece", "ms", "CPU ms", "times a round", "CPU ms a round")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [
        f"| {p.place} | {p.name} | {p.wall_ms:.2f} | {p.cpu_ms:.2f} | {p.times} "
        f"| {p.cpu_ms * p.times:.1f} |"
        for p in pieces
    ]
    return "\n".join(lines) + "\n"


def timed(place: str, name: str, times: int, step: Callable[[], object]) -> Piece:
    """Take the median over `REPEATS` calls of `step`, after one that is not counted."""
    step()
    walls, cpus = [], []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Piece(place, name, 1e3 * median(walls), 1e3 * median(cpus), times)


def _pieces(work: Work, folder: Path) -> tuple[list[Piece], int]:
    """The pieces, and the FLOP of a client's local epoch in convolutions and matrix products."""
    preparation = _prepared(work, IN_PROCESS)
    config, strategy = preparation.config, preparation.strategy
    workload, state = preparation.workload, preparation.initial_state()
    parameters = ParameterVector(preparation.model)
    indices = torch.from_numpy(preparation.partition.clients[0])
    examples = labelled(workload.examples(indices))
    objective = workload.objective(preparation.model, examples, seed=0, partition_id=0)
    broadcast = strategy.broadcast(state)
    content = to_flower(Record(broadcast, settings={"round": 1}))
    received = from_flower(content)

    def add_two() -> None:  # in one pass over their sum
        for _ in range(2):
            strategy.add(accumulator, reply)

    def load() -> None:
        parameters.load(tensors_of(received.arrays))

    def train() -> None:
        train_locally(parameters, objective, config.train, seed=0)

    model = preparation.model
    first = torch.arange(config.train.batch_size)

    def forward() -> torch.Tensor:
        return objective.losses(first).mean()

    def backward() -> None:
        parameters.drop_gradients()
        forward().backward()

    def step() -> None:
        parameters.step_apart_(None, learning_rate=1e-6, momentum=0.0, weight_decay=0.0)

    given = Given.read(work.folder)
    plain = given.initial_model()
    client = given.cohorts[0][0]
    num_clients = work.size.cohort_size
    num_steps = strategy.client_steps(preparation.client_shapes()[0])
    num_full = len(examples) // config.train.batch_size
    sent = Record(
        arrays_of(weights_of(model)),
        {"num_examples": len(examples), "train_loss": 1.0, "train_s": 0.1},
        {"round": 1},
    )
    reply_content = to_flower(sent)
    form = reply_spec(preparation, preparation.client_shapes()[0], 1)
    reply = Reply(0, from_flower(reply_content, form))
    accumulator = strategy.begin(state)
    task = ServerTask(
        round=1,
        seed=0,
        parameters=parameters,
        workload=workload,
        device=workload.device,
        count_step=lambda: None,
    )
    run_folder = RunFolder(folder / "run")
    run_folder.path.mkdir(parents=True, exist_ok=True)
    record = _record(num_clients, form.num_bytes())
    checkpoint = Checkpoint(1, state, {}, 0)
    store, kept = ClientStore(folder / "clients", 0, config.identity()), {"v": parameters.values}
    with FlopCounterMode(display=False) as counter:
        train()
    pieces = [
        timed("client", "decode the weights", num_clients, lambda: from_flower(content)),
        timed("client", "copy and load the weights", num_clients, load),
        timed("client", LOCAL_EPOCH, num_clients, train),
        timed("client", "- forward of a full batch", num_clients * num_full, forward),
        timed(
            "client",
            "- forward and backward of a full batch",
            num_clients * num_full,
            backward,
        ),
        timed("client", "- step", num_clients * num_steps, step),
        timed(
            "hand loop",
            "local epoch, whole (torch.optim)",
            num_clients,
            lambda: train_one_epoch(plain, given, 1, client),
        ),
        timed("client", "copy the weights out", num_clients, lambda: weights_of(model)),
        timed("client", "encode the reply", num_clients, lambda: to_flower(sent)),
        timed("SCAFFOLD's client", "write its state", num_clients, lambda: store.write(1, kept)),
        timed("SCAFFOLD's client", "read its state", num_clients, lambda: store.read(1)),
        timed("server", "encode the broadcast", 1, lambda: serialise(Record(broadcast))),
        timed("server", "decode a reply", num_clients, lambda: from_flower(reply_content, form)),
        timed(
            "server", "check a reply's values", num_clients, lambda: form.violations(reply.record)
        ),
        timed("server", "add two replies", -(-num_clients // 2), add_two),
        timed("server", "finish", 1, lambda: strategy.finish(state, accumulator, task)),
        timed("server", "append the record", 1, lambda: run_folder.append_round(record)),
        timed(
            "server",
            "write a checkpoint (not in the comparison's rounds)",
            1,
            lambda: checkpoint.write(run_folder.checkpoint(1), config.identity()),
        ),
    ]
    return pieces, counter.get_total_flops()


def _transport(work: Work) -> list[Piece]:
    """One message to a client that returns at once, and its reply, through each engine."""
    pieces: list[Piece] = []
    for name, keys in (("in-process", IN_PROCESS), ("processes", PROCESSES), ("ray", RAY)):
        one_worker = {} if keys is IN_PROCESS else {"engine.workers": 1}
        preparation = _prepared(work, {**keys, **one_worker})
        arrays = serialise(Record(preparation.strategy.broadcast(preparation.initial_state())))
        server_app = ServerApp()

        @server_app.main()
        def measure(
            grid: Grid, context: Context, name: str = name, arrays: ArrayRecord = arrays
        ) -> None:
            def exchange() -> None:
                content = to_flower(Record(settings={"round": 1}), arrays)
                node = next(iter(grid.get_node_ids()))
                list(grid.send_and_receive([Message(content, node, "train")]))

            what = f"message to a client and back, {name}"
            pieces.append(timed("server", what, work.size.cohort_size, exchange))

        simulate(
            server_app,
            "benchmarks.echo:app",
            run_config=preparation.config.flat(),
            num_partitions=work.size.num_clients,
            config=preparation.config.engine,
        )
    return pieces


def _prepared(work: Work, keys: Mapping[str, object]) -> Preparation:
    return prepare(parse_config({**work.settings(), **keys}))


def _record(num_clients: int, num_bytes: int) -> RoundRecord:
    one = ClientRecord(
        partition_id=0,
        bytes_down=num_bytes,
        bytes_up=num_bytes,
        metrics={"num_examples": 100.0, "train_loss": 1.0},
    )
    return RoundRecord(
        round=1,
        validation=None,
        test=None,
        client_scores=None,
        worst_client_score=None,
        bytes_down=num_clients * num_bytes,
        bytes_up=num_clients * num_bytes,
        clients=[dataclasses.replace(one, partition_id=k) for k in range(num_clients)],
        server={},
        seconds={"wall": 1.0, "elapsed": 1.0},
    )
