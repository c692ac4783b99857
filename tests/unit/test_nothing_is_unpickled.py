"""What comes from another machine is read as data, and never as code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("client", "core", "data", "distill", "engine/edge", "models"),
    *("pairing", "privacy", "report", "server", "strategies", "workloads"),
)
"""All that meets bytes of other machines. A client and its own worker process pass objects on by
pickle, of which neither writes a byte that came from elsewhere."""

UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
PLUGINS = "core/plugins.py"
"""Runs a user's own file; a client on a machine of its own is given none."""

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            yield node.module or ""
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in EVALUATORS:
            yield name
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if name.rpartition(".")[2] == "load" and keywords.get("allow_pickle") == "True":
            yield f"{name} with allow_pickle=True"
        if name in {"yaml.load", "yaml.unsafe_load", "np.memmap"}:
            yield name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_neither_unpickles_nor_evaluates(path: Path) -> None:
    assert list(offences(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
    ],
)
def test_each_offence_would_be_found(source: str) -> None:
    assert len(list(offences(ast.parse(source)))) == 1


def test_the_files_are_there() -> None:
    assert len(FILES) > 80 and ROOT / PLUGINS in FILES
