"""FedAvg written by hand in one process, with one resident model: the least that can be done."""

from __future__ import annotations

import torch

from benchmarks.peers.given import Diary, Given, arguments, train_one_epoch


def run(given: Given, diary: Diary) -> None:
    """All rounds; clients hold equally much, so that the mean is the weighted mean."""
    model = given.initial_model()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for number, cohort in enumerate(given.cohorts, start=1):
        sums = {name: torch.zeros_like(value) for name, value in weights.items()}
        for client in cohort:
            model.load_state_dict(weights)
            train_one_epoch(model, given, number, client)
            for name, value in model.state_dict().items():
                sums[name] += value
        weights = {name: value / len(cohort) for name, value in sums.items()}
        diary.round_ended(number)
    diary.finished(weights)


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = arguments(__doc__)
    run(Given.read(asked.work), Diary(asked.out))
