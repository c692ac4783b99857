"""The doctor tells what is missing and what to do."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli.doctor
from cli.doctor import Check, checks, to_text
from cli.main import app
from cli.project import Project


def look(tmp_path: Path) -> dict[str, Check]:
    return {check.name: check for check in checks(tmp_path, tmp_path / "runs", start_ray=False)}


def pretend(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
    project = Project(**{"version": "0", "requires_python": ">=3", "requirements": (), **facts})
    monkeypatch.setattr(cli.doctor, "this_project", lambda: project)


def test_where_all_is_there_nothing_fails(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert {check.state for check in found.values()} <= {"ok", "note"}
    for name in ("python", "torch", "flwr", "memory", "disk", "runs folder", "data digits"):
        assert found[name].state in {"ok", "note"}
    assert not (tmp_path / "runs").exists()


def test_missing_data_is_a_note_that_names_the_files(tmp_path: Path) -> None:
    check = look(tmp_path)["data cifar10"]
    assert check.state == "note"
    assert str(tmp_path) in check.found
    assert "data_batch_1" in check.found
    assert "data.download=true" in check.remedy


def test_an_old_or_missing_package_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, requirements=("numpy>=999", "no-such-package-at-all>=1", "rich>=1"))
    found = look(tmp_path)
    assert [found[n].state for n in ("numpy", "no-such-package-at-all", "rich")] == [
        "failed",
        "failed",
        "ok",
    ]
    assert ">=999" in found["numpy"].found
    assert "no-such-package-at-all>=1" in found["no-such-package-at-all"].remedy


def test_a_requirement_of_another_platform_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, requirements=('no-such-package>=1; sys_platform == "none"',))
    assert "no-such-package" not in look(tmp_path)


def test_an_old_python_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, requires_python=">=99")
    assert look(tmp_path)["python"].state == "failed"


def test_a_torch_that_does_not_fit_its_torchvision_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found = look(tmp_path)
    assert found["torch with torchvision"].state == "failed"
    assert "matching pair" in found["torch with torchvision"].remedy
    assert not any(name.startswith("data ") for name in found)


def test_a_runs_folder_that_cannot_be_written_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    check = look(tmp_path)["runs folder"]
    assert check.state == "failed"
    assert "Read-only file system" in check.found
    assert "runs=DIR" in check.remedy


def test_text_gives_remedies_and_a_verdict() -> None:
    text = to_text([Check("a", "ok", "fine"), Check("b", "failed", "gone", "get it")])
    assert "-> get it" in text
    assert text.endswith("1 required thing is missing\n")
    assert to_text([Check("a", "ok", "fine")]).endswith("all that is required is there\n")


@pytest.mark.parametrize("healthy", [True, False])
def test_exit_code_and_json(healthy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, requires_python=">=3" if healthy else ">=99")
    result = CliRunner().invoke(app, ["doctor", "--json"])
    value = json.loads(result.stdout)
    assert (result.exit_code, value["ok"]) == (0, True) if healthy else (1, False)
    assert all(check.keys() == {"name", "state", "found", "remedy"} for check in value["checks"])
