"""What is refused of strategy and workload, and with which way out."""

from __future__ import annotations

import pytest

from core.config import RunConfig
from core.errors import ConfigError
from pairing.configuration import parse_config
from strategies.table import STRATEGIES
from workloads.table import WORKLOADS

DP = {"privacy.epsilon": 4.0}


def refusal(**keys: object) -> str:
    flat = {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}
    with pytest.raises(ConfigError) as caught:
        parse_config(flat)
    return str(caught.value)


@pytest.mark.parametrize("strategy", ["feddm", "real-images"])
def test_methods_that_send_images_need_their_loss(strategy: str) -> None:
    told = refusal(strategy=strategy, workload="meltr")
    assert "its server trains on labelled images that clients send" in told
    assert "workload meltr makes one loss of several tasks'" in told
    assert "take another strategy, such as fedavg" in told


@pytest.mark.parametrize("strategy", ["scaffold", "fednova"])
def test_methods_that_read_gradients_off_steps_need_plain_steps(strategy: str) -> None:
    told = refusal(strategy=strategy, train__optimizer="adam")
    assert "train.optimizer=adam scales every coordinate by its own history" in told
    assert "or train.optimizer=sgd" in told
    assert parse_config({"strategy": strategy}).train.optimizer == "sgd"


@pytest.mark.parametrize("strategy", ["trimmed-mean", "median", "multi-krum"])
def test_methods_that_compare_replies_need_replies_of_one_form(strategy: str) -> None:
    told = refusal(strategy=strategy, workload="meltr", meltr__tasks="rotation;mixup")
    assert "gives clients different tasks" in told
    parse_config({"strategy": strategy, "workload": "meltr", "meltr.tasks": "rotation,mixup"})


def test_privacy_without_gradients_of_single_examples_points_to_client_level() -> None:
    told = refusal(
        strategy="fedavg", workload="meltr", privacy__mechanism="dp-sgd", privacy__epsilon=4
    )
    assert "no example has a part of its own" in told and "moves phi" in told
    assert (
        "set privacy.mechanism=client, which bounds and noises each client's whole update" in told
    )
    told = refusal(
        strategy="median", workload="meltr", privacy__mechanism="dp-sgd", privacy__epsilon=4
    )
    assert "take strategy=fedavg with privacy.mechanism=client" in told
    way_out = {"strategy": "fedavg", "workload": "meltr", "privacy.mechanism": "client", **DP}
    assert parse_config(way_out).privacy.mechanism == "client"
    told = refusal(**{**way_out, "meltr.tasks": "rotation;mixup"})
    assert "adds clients' updates up as vectors of one length" in told


def test_dp_sgd_refuses_parts_that_nothing_noises() -> None:
    told = refusal(
        strategy="fedavg",
        groups__personal="classifier",
        privacy__mechanism="dp-sgd",
        privacy__epsilon=4,
    )
    assert "groups.personal keeps parts that nothing noises" in told
    assert "privacy.mechanism=client" in told


@pytest.mark.parametrize("strategy", ["feddm", "local", "centralized"])
def test_personal_parts_need_an_average_of_weights(strategy: str) -> None:
    told = refusal(strategy=strategy, groups__personal="classifier")
    assert "does not average clients' weights" in told and "fedavg" in told


def test_features_that_look_at_labelled_images_need_them() -> None:
    told = refusal(strategy="fedavg", workload="meltr", canaries__kind="noise")
    assert "looks for the traces of their loss" in told
    parse_config({"strategy": "fedavg", "workload": "meltr", "attack.kind": "label-flip"})


def test_an_audit_needs_the_whole_model() -> None:
    told = refusal(strategy="fedavg", canaries__kind="noise", groups__personal="classifier")
    assert "keeps parts of the model that no transcript holds" in told
    parse_config({"strategy": "fedavg", "canaries.kind": "noise", "groups.frozen": "classifier"})


def test_keys_of_a_workload_are_its_own() -> None:
    told = refusal(strategy="fedavg", meltr__update_every=5)
    assert "workload classification does not read it (only meltr)" in told
    told = refusal(strategy="fedavg", workload="meltr", fedprox__proximal_weight=1.0)
    assert "strategy fedavg does not read it (only fedprox)" in told
    told = refusal(strategy="fedavg", workload="metlr")
    assert "did you mean meltr?" in told


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"meltr__tasks": "rotation,rotation"}, "must be names out of rotation, mixup"),
        ({"meltr__tasks": "jigsaw"}, "must be names out of rotation, mixup"),
        ({"meltr__width": 20}, "must be a multiple of meltr.heads=8"),
        ({"meltr__optimizer": "multi-task", "meltr__clip": 1.0}, "is read only with meltr.opt"),
        ({"meltr__damping": 0.5}, "is read only with meltr.optimizer=aid-cg"),
        ({"meltr__direct_term": True, "meltr__regularisation": 0}, "there is no such term"),
        ({"meltr__loss": "linear", "meltr__heads": 4}, "is read only with meltr.loss"),
    ],
)
def test_meltrs_keys_are_checked(keys: dict[str, object], told: str) -> None:
    assert told in refusal(strategy="fedavg", workload="meltr", **keys)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("workload", sorted(WORKLOADS))
def test_every_pair_runs_or_says_why_not(strategy: str, workload: str) -> None:
    keys = {"strategy": strategy, "workload": workload}
    needs = STRATEGIES[strategy].needs
    lacks = WORKLOADS[workload].lacks(_defaults(workload))
    if needs.keys() & lacks.keys():
        assert needs[next(iter(needs.keys() & lacks.keys()))] in refusal(**keys)
    else:
        assert parse_config(keys).workload == workload


def _defaults(workload: str) -> RunConfig:
    return parse_config({"strategy": "fedavg", "workload": workload})
