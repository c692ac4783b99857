"""FedAvg under stock Flower: `run_simulation` on two Ray actors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers.flower_client import app as client_app
from benchmarks.peers.given import Diary, Given, arguments

NUM_ACTORS = 2


class GivenCohorts(FedAvg):
    """FedAvg whose messages tell which client's data to train on.

    Flower draws node ids at random and samples from them, which no seed repeats. It still samples
    as many nodes as ever; only whose data a node takes is told by the message. It adds up replies
    as they arrive; they are put in the cohort's order first, so that all runs end at one loss.
    """

    def __init__(self, given: Given, diary: Diary) -> None:
        num_clients, cohort_size = len(given.clients), len(given.cohorts[0])
        super().__init__(
            fraction_train=cohort_size / num_clients,
            fraction_evaluate=0.0,
            min_train_nodes=cohort_size,
            min_available_nodes=num_clients,
        )
        self._cohorts = given.cohorts
        self._asked: list[int] = []
        self._diary = diary

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Stock sampling; then each message names a client of the given cohort."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = [message.metadata.dst_node_id for message in messages]
        for message, client in zip(messages, self._cohorts[server_round - 1], strict=True):
            told = ConfigRecord({**config, "client": client})
            message.content = RecordDict({"arrays": arrays, "config": told})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Stock aggregation in the cohort's order; then the round has ended."""
        place = self._asked.index
        ordered = sorted(replies, key=lambda reply: place(reply.metadata.src_node_id))
        aggregated = super().aggregate_train(server_round, ordered)
        self._diary.round_ended(server_round)
        return aggregated


def main() -> None:
    """Run all rounds of the work that the command line names."""
    asked = arguments(__doc__)
    torch.set_num_threads(1)
    given, diary = Given.read(asked.work), Diary(asked.out)
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        result = GivenCohorts(given, diary).start(
            grid,
            initial_arrays=ArrayRecord(given.initial_model().state_dict()),
            num_rounds=len(given.cohorts),
            train_config=ConfigRecord({"work": str(asked.work), "echo": asked.echo}),
        )
        diary.finished(result.arrays.to_torch_state_dict())

    run_simulation(
        server_app,
        client_app,
        num_supernodes=len(given.clients),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": NUM_ACTORS},
        },
    )


if __name__ == "__main__":
    main()
