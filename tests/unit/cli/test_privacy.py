"""``tessera privacy epsilon`` and ``noise``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.main import app
from cli.outcome import EXIT_CODES
from privacy.accounting import Segment, epsilon, pld_epsilon

PAPERS = ("--batch-size", "256", "--examples", "5000", "--steps", "977")


def tessera(*words: str) -> Result:
    return CliRunner().invoke(app, ("privacy", *words))


def as_json(*words: str) -> dict[str, Any]:
    result = tessera(*words, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def words_of(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    return " ".join(result.stdout.split())


def test_epsilon_of_a_round_and_of_the_run_side_by_side() -> None:
    words = words_of(tessera("epsilon", "--noise-multiplier", "3", *PAPERS, "--rounds", "20"))
    assert "sigma 3, sampling rate 0.0512, 977 steps a round, delta 1e-05" in words
    assert "epsilon one round 20 rounds 977 steps 19,540 steps" in words
    assert "PRV, the figure of record 2.264 12.937" in words
    assert "RDP, for information 2.460 13.883" in words
    assert "PLD of dp-accounting, a check 2.254 12.927" in words
    for meant in (
        "one example of a client",
        "adding or removing one",
        "Poisson sampling",
        "the figure of one round is not that of a run",
        "the largest of its clients'",
    ):
        assert meant in words
    assert "warning" not in words


def test_epsilon_as_json() -> None:
    told = as_json("epsilon", "--noise-multiplier", "3", *PAPERS, "--rounds", "20")
    for name in ("prv", "rdp", "pld"):
        for key, steps in (("per_round", 977), ("whole_run", 19_540)):
            history = [Segment(3.0, 0.0512, steps)]
            expected = (
                pld_epsilon(history, 1e-5) if name == "pld" else epsilon(history, 1e-5, name).value
            )
            assert told["epsilon" if name == "prv" else name][key] == expected
    assert (told["accountant"], told["reason"], told["warnings"]) == ("prv", "", [])
    assert (told["noise_multiplier"], told["sampling_rate"], told["delta"]) == (3.0, 0.0512, 1e-5)
    assert (told["steps"], told["rounds"]) == (977, 20)
    assert (told["unit"], told["adjacency"], told["sampling"]) == (
        "example",
        "add or remove one",
        "poisson",
    )


def test_the_rate_may_be_given_either_way() -> None:
    rate = ("--sampling-rate", "0.0512", "--steps", "977")
    setting = ("epsilon", "--noise-multiplier", "3", "--accountant", "rdp")
    assert as_json(*setting, *rate) == as_json(*setting, *PAPERS)


def test_rdp_can_be_the_figure_of_record() -> None:
    setting = ("epsilon", "--noise-multiplier", "3", *PAPERS, "--accountant", "rdp")
    words = words_of(tessera(*setting))
    assert "RDP, the figure of record 2.460 PLD" in words
    assert "PRV" not in words
    told = as_json(*setting)
    assert told["accountant"] == "rdp"
    assert told["epsilon"] == told["rdp"]


def test_a_delta_as_large_as_one_example_is_warned_of() -> None:
    setting = ("epsilon", "--noise-multiplier", "3", *PAPERS)
    words = words_of(tessera(*setting, "--delta", "0.0002"))
    assert "warning: delta 0.0002 is not below 1 over the 5,000 examples" in words
    assert "take less, such as 2e-05" in words
    assert len(as_json(*setting, "--delta", "0.0002")["warnings"]) == 1
    assert as_json(*setting, "--delta", "0.000199")["warnings"] == []


def test_no_noise_is_no_privacy() -> None:
    setting = ("epsilon", "--noise-multiplier", "0", "--sampling-rate", "0.1", "--steps", "5")
    words = words_of(tessera(*setting))
    assert "PRV, the figure of record infinite" in words
    assert "Nothing is private" in words
    assert "It holds" not in words
    told = as_json(*setting)
    nothing = {"per_round": None, "whole_run": None}
    assert (told["epsilon"], told["rdp"], told["pld"]) == (nothing, nothing, nothing)


def test_where_prv_cannot_it_is_said_why_rdp_is_shown() -> None:
    setting = ("epsilon", "--noise-multiplier", "0.3", "--sampling-rate", "0.5", "--steps", "20000")
    words = words_of(tessera(*setting))
    assert "RDP is the figure of record: PRV would take about" in words
    assert "its limit is 20 s" in words
    assert "PLD of dp-accounting, a check not computed" in words
    assert "PRV, the figure" not in words
    told = as_json(*setting)
    assert (told["accountant"], told["pld"]) == ("rdp", None)
    assert "its limit is 20 s" in told["reason"]
    assert told["epsilon"] == told["rdp"]


def test_noise_for_a_budget_of_the_whole_run() -> None:
    setting = ("noise", "--epsilon", "4", "--sampling-rate", "0.05", "--steps", "20")
    told = as_json(*setting, "--rounds", "20")
    assert told["target_epsilon"] == 4.0
    assert 3.99 < told["epsilon"]["whole_run"] <= 4.0
    sigma = told["noise_multiplier"]
    assert epsilon([Segment(sigma, 0.05, 400)], 1e-5).value == told["epsilon"]["whole_run"]
    assert epsilon([Segment(sigma, 0.05, 20)], 1e-5).value == told["epsilon"]["per_round"]
    words = words_of(tessera(*setting, "--rounds", "20"))
    assert words.startswith(f"noise multiplier {sigma} keeps epsilon 4 over 20 rounds ")
    assert "Poisson sampling" in words
    # What is printed is what is meant, to the last digit.
    again = as_json(
        "epsilon",
        *("--noise-multiplier", str(sigma), "--sampling-rate", "0.05"),
        *("--steps", "20", "--rounds", "20"),
    )
    assert again["epsilon"] == told["epsilon"]
    assert as_json(*setting)["noise_multiplier"] < sigma


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["epsilon", "--noise-multiplier", "1", *PAPERS, "--accountant", "gdp"], "understates"),
        (["noise", "--epsilon", "4", *PAPERS, "--accountant", "gdp"], "understates epsilon"),
        (["noise", "--epsilon", "0", *PAPERS], "epsilon=0: must be above 0.01"),
        (["epsilon", "--noise-multiplier", "1", *PAPERS, "--delta", "1"], "delta=1: must be"),
        (
            ["epsilon", "--noise-multiplier", "1", "--sampling-rate", "2", "--steps", "1"],
            "sampling-rate=2: must be above 0 and at most 1",
        ),
        (
            ["epsilon", "--noise-multiplier", "1", *PAPERS, "--batch-size", "5001"],
            "batch-size=5001: must be at most the 5,000 examples",
        ),
        (["epsilon", "--noise-multiplier", "1", *PAPERS, "--sampling-rate", "0.1"], "not go"),
        (["epsilon", "--noise-multiplier", "1", "--steps", "1"], "give --sampling-rate Q, or"),
        (["epsilon", "--noise-multiplier", "1", *PAPERS[2:]], "--batch-size B and --examples N"),
        (["epsilon", *PAPERS], "--noise-multiplier"),
        (["epsilon", "--noise-multiplier", "1", *PAPERS, "--rounds", "0"], "x>=1"),
    ],
)
def test_what_is_refused(words: list[str], told: str) -> None:
    result = tessera(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    refused = tessera(*words, "--json")
    assert refused.exit_code == 2
    assert told in json.loads(refused.stdout)["error"]["message"]


@pytest.mark.parametrize("command", [["epsilon", "--help"], ["noise", "--help"], ["--help"]])
def test_the_help_is_plain_and_whole(command: list[str]) -> None:
    result = tessera(*command)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\\" not in result.stdout
    for code, meaning in EXIT_CODES.items():
        assert f"{code:>3}  {meaning}" in result.stdout
    if len(command) == 2:
        for option in ("--sampling-rate", "--batch-size", "--examples", "--delta", "--rounds"):
            assert f" {option} " in result.stdout
        assert "gdp is refused" in " ".join(result.stdout.split())
