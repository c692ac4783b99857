"""FedDM against FedAvg on handwritten digits, from Python; each ``# %%`` is a notebook cell.

Small enough for half a minute; the comparison worth looking at is `examples/demo.toml`.
"""

# %% What both methods share: five clients, each with few of the ten digits.
import tessera

shared = {
    "rounds": 2,
    "model.width": 16,
    "partition.clients": 5,
    "partition.alpha": 0.1,
}

# %% FedDM: clients send two synthetic images of each of their digits.
feddm = tessera.run(
    shared,
    strategy="feddm",
    mosaic={"images_per_class": 2, "epochs": 20},
    feddm={"iterations": 10},
)

# %% FedAvg: clients send their weights.
fedavg = tessera.run(shared, strategy="fedavg", train={"learning_rate": 0.1})

# %% A run is what it recorded, round by round.
for run in (feddm, fedavg):
    accuracies = [f"{record.test.primary:.1%}" for record in run.rounds if record.test]
    print(run.strategy, "test accuracy by round:", ", ".join(accuracies))

# %% Side by side, and as one HTML file.
print(tessera.table([feddm, fedavg]))
print("report", tessera.report([feddm, fedavg], "report.html"))
