"""pyproject.toml: Flower's run-config must be our defaults, and the bundle must hold the apps."""

from __future__ import annotations

import tomllib
from pathlib import Path

from core.config import Scalar
from pairing.configuration import config_keys

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUNDLED = {
    "client",
    "core",
    "data",
    "distill",
    "models",
    "pairing",
    "privacy",
    "server",
    "strategies",
    "workloads",
}


def expected_toml() -> str:
    """The block that belongs into pyproject.toml, from the keys themselves."""
    lines, section = ["[tool.flwr.app.config]"], ""
    ordered = sorted(config_keys(), key=lambda key: "." in key.name)
    for key in ordered:
        title, _, name = key.name.rpartition(".")
        if title != section:
            lines += ["", f"[tool.flwr.app.config.{title}]"]
            section = title
        lines.append(f"{name} = {as_toml(key.default)}")
    return "\n".join(lines) + "\n"


def as_toml(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def test_flowers_run_config_is_our_defaults() -> None:
    block = expected_toml()
    text = (ROOT / "pyproject.toml").read_text()
    assert block in text, f"pyproject.toml must hold exactly this block:\n\n{block}"


def test_the_bundle_holds_what_the_apps_import_and_nothing_else() -> None:
    patterns = PROJECT["tool"]["flwr"]["app"]["fab-include"]
    assert {p.partition("/")[0] for p in patterns if p.endswith(".py")} == BUNDLED


def test_benchmarks_are_never_installed() -> None:
    """Opacus installs a top-level `benchmarks` of its own, which ours would overwrite."""
    assert "benchmarks" not in PROJECT["tool"]["setuptools"]["packages"]


def test_no_registry_is_named() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or ("==" in line and "/" not in line and "@" not in line), line


def test_every_package_is_installed_and_goes_into_images() -> None:
    """Each has a line in three lists; a folder that lacks one works in a checkout alone."""
    packages = set(PROJECT["tool"]["setuptools"]["packages"])
    tops = {name.partition(".")[0] for name in packages}
    found = {path.parent.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("*.py")}
    assert packages == {".".join(path.parts) for path in found}
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    assert tops <= {line.removeprefix("!") for line in let_through if line.startswith("!")}
    assert tops < set(PROJECT["tool"]["importlinter"]["root_packages"])
