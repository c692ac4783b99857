"""``tessera doctor``: whether this machine has what runs need, and what to do where not.

Nothing heavy is imported before it is known to import, so that a broken installation is told of
rather than stumbled over.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cli.project import Project, this_project
from core.config import DataConfig
from core.errors import TesseraError

State = Literal["ok", "note", "failed"]

FEW_BYTES_OF_MEMORY = 2_000_000_000
FEW_BYTES_OF_DISK = 1_000_000_000

_EMBEDDED = "digits"
_SOURCES = (_EMBEDDED, "mnist", "fashion-mnist", "cifar10", "cifar100")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What.
        state: ``ok``; ``note`` where only some runs miss it; ``failed`` where every run does.
        found: What is there.
        remedy: What to do; empty where nothing need be done.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def checks(data_root: Path, runs: Path, *, start_ray: bool) -> Iterator[Check]:
    """Look at everything, one by one.

    Args:
        data_root: Where torchvision data sets would be read from.
        runs: Where run folders would be made.
        start_ray: Also start Ray and run one client on it.
    """
    project = this_project()
    yield _python(project)
    yield from _packages(project)
    torch_check = _torch()
    yield torch_check
    imports = torch_check.state == "ok"
    if imports:
        yield _gpu()
    yield _cores()
    yield _memory()
    yield _disk(runs)
    yield _writable(runs)
    if imports:
        yield from _sources(data_root)
    if start_ray:
        yield _ray() if imports else Check("ray", "failed", "not tried", "mend torch first")


def to_text(found: list[Check]) -> str:
    """For readers: a line per check, and below it what to do."""
    width = max(len(check.name) for check in found)
    lines = []
    for check in found:
        lines.append(f"{check.state:6}  {check.name.ljust(width)}  {check.found}")
        if check.remedy:
            lines.append(f"{'':6}  {'':{width}}  -> {check.remedy}")
    failed = sum(check.state == "failed" for check in found)
    verdict = "all that is required is there"
    if failed:
        verdict = f"{failed} required {'thing is' if failed == 1 else 'things are'} missing"
    return "\n".join([*lines, "", verdict, ""])


def _python(project: Project) -> Check:
    found = platform.python_version()
    if SpecifierSet(project.requires_python).contains(found, prereleases=True):
        return Check("python", "ok", found)
    remedy = f"install Python {project.requires_python} and make the environment anew"
    return Check("python", "failed", found, remedy)


def _packages(project: Project) -> Iterator[Check]:
    for line in project.requirements:
        required = Requirement(line)
        if required.marker is not None and not required.marker.evaluate():
            continue
        remedy = f'python -m pip install "{required.name}{required.specifier}"'
        try:
            version = importlib.metadata.version(required.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(required.name, "failed", "not installed", remedy)
            continue
        if required.specifier.contains(version, prereleases=True):
            yield Check(required.name, "ok", version)
        else:
            found = f"{version}, and {required.specifier} is needed"
            yield Check(required.name, "failed", found, remedy)


def _torch() -> Check:
    try:
        import torch
        import torchvision
    except Exception as error:  # a mismatched pair fails in ways of its own
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        remedy = (
            "install a matching pair: python -m pip install --force-reinstall torch torchvision"
        )
        return Check("torch with torchvision", "failed", reason, remedy)
    found = f"{torch.__version__} with {torchvision.__version__}"
    return Check("torch with torchvision", "ok", found)


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("GPU", "ok", "none; runs use the CPU")
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    return Check("GPU", "ok", "; ".join(names))


def _cores() -> Check:
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Check("cores", "ok", f"{count} for this process")


def _memory() -> Check:
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    memory = min(limits)
    if memory >= FEW_BYTES_OF_MEMORY:
        return Check("memory", "ok", f"{memory / 1e9:.1f} GB")
    remedy = "keep to digits and engine.kind=in-process"
    return Check("memory", "note", f"{memory / 1e9:.1f} GB", remedy)


def _nearest_folder(path: Path) -> Path:
    """`path`, or the closest folder above it that is there."""
    resolved = path.expanduser().resolve()
    return next(folder for folder in (resolved, *resolved.parents) if folder.exists())


def _disk(runs: Path) -> Check:
    free = shutil.disk_usage(_nearest_folder(runs)).free
    found = f"{free / 1e9:.1f} GB free at {runs}"
    if free >= FEW_BYTES_OF_DISK:
        return Check("disk", "ok", found)
    return Check("disk", "note", found, "make room, or record elsewhere with runs=DIR")


def _writable(runs: Path) -> Check:
    folder = _nearest_folder(runs)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror}"
        return Check("runs folder", "failed", found, "record elsewhere with runs=DIR")
    return Check("runs folder", "ok", f"{runs} can be written")


def _sources(root: Path) -> Iterator[Check]:
    from data.sources import check_source  # imports torch

    for source in _SOURCES:
        try:
            check_source(DataConfig(source=source, root=str(root)))
        except TesseraError as error:
            state: State = "failed" if source == _EMBEDDED else "note"
            text = str(error).removeprefix(f"data.source={source}: ")
            missing, _, remedy = text.partition("; ")
            yield Check(f"data {source}", state, missing, remedy)
        else:
            where = "embedded" if source == _EMBEDDED else f"in {root}"
            yield Check(f"data {source}", "ok", where)


def _ray() -> Check:
    """Train one client for one round on a Ray actor."""
    try:
        from experiments.run import run
        from pairing.configuration import parse_config
        from server.progress import PlainProgress

        settings = {"engine.kind": "ray", "engine.workers": 1, "engine.device": "cpu"}
        settings |= {"strategy": "fedavg", "rounds": 1, "partition.clients": 1}
        settings |= {"partition.scheme": "iid", "model.width": 1}
        with (
            tempfile.TemporaryDirectory(prefix="tessera-") as folder,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            run(parse_config({**settings, "runs": folder}), PlainProgress())
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Check("ray", "failed", reason, "run without it: engine.kind=in-process")
    return Check("ray", "ok", "started, and ran one client")
