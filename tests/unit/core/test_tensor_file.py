"""Files of tensors: what is read is what was written, or it is refused."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from core.errors import RecordError
from core.tensor_file import has_digest, read_about, read_tensors, write_tensors

TENSORS = {
    "matrix": torch.arange(12, dtype=torch.float32).view(3, 4).t(),  # not contiguous
    "steps": torch.tensor(7),
    "nothing": torch.zeros(0, 5, dtype=torch.float64),
    "flags": torch.tensor([True, False]),
}
ABOUT = {"round": "3", "identity": "of a run"}


def written(folder: Path) -> Path:
    path = folder / "deep" / "three.safetensors"
    write_tensors(path, TENSORS, ABOUT)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    tensors, about = read_tensors(path)
    assert about == ABOUT
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert has_digest(path)
    assert ABOUT.items() <= read_about(path).items()


def test_any_reader_of_safetensors_reads_it_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert torch.equal(load_file(path)["matrix"], TENSORS["matrix"])
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_it_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "three.safetensors"
    synced: list[tuple[int, int, bool]] = []

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((found.st_ino, found.st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_tensors(path, TENSORS, ABOUT)
    assert synced == [(path.stat().st_ino, path.stat().st_size, False)]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_where_there_is_no_room_the_old_file_stays_and_nothing_lies_beside_it(
    tmp_path: Path,
) -> None:
    import resource

    path = written(tmp_path)
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"three\.safetensors cannot be written: .*too large"):
            write_tensors(path, {"large": torch.zeros(1000)}, ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("whole"))


@settings(max_examples=200)
@given(data=st.data())
def test_a_changed_bit_or_a_missing_end_is_refused(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[at:]
    damaged = whole.with_name("damaged.safetensors")
    damaged.write_bytes(content)
    try:
        tensors, about = read_tensors(damaged)
    except RecordError:
        return
    assert about == ABOUT  # it was a bit that means nothing
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_tensors_or_words_of_another_file_are_refused(tmp_path: Path) -> None:
    digest = read_about(written(tmp_path))["xxh3_128"]
    path = tmp_path / "other.safetensors"
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(contiguous, path, {**ABOUT, "xxh3_128": digest})
    assert read_tensors(path)[1] == ABOUT
    save_file(contiguous, path, {**ABOUT, "round": "4", "xxh3_128": digest})
    with pytest.raises(RecordError, match="does not give its xxh3_128"):
        read_tensors(path)
    renamed = {name.replace("steps", "stops"): tensor for name, tensor in contiguous.items()}
    save_file(renamed, path, {**ABOUT, "xxh3_128": digest})
    with pytest.raises(RecordError, match="does not give its xxh3_128"):
        read_tensors(path)


def test_a_file_that_others_wrote_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    assert not has_digest(path)
    with pytest.raises(RecordError, match="does not give its xxh3_128"):
        read_tensors(path)
    with pytest.raises(RecordError, match="is missing"):
        has_digest(tmp_path / "none.safetensors")


def test_files_with_the_digest_of_before_are_read_and_checked(tmp_path: Path) -> None:
    path, tensors = tmp_path / "before.safetensors", {"w": torch.tensor([1.0, 2.0])}
    told = repr(sorted(ABOUT.items())).encode() + b"w torch.float32 (2,)"
    digest = hashlib.sha256(told + tensors["w"].numpy().tobytes()).hexdigest()
    save_file(tensors, path, {**ABOUT, "sha256": digest})
    assert has_digest(path)
    assert read_tensors(path)[1] == ABOUT
    save_file({"w": torch.tensor([1.0, 3.0])}, path, {**ABOUT, "sha256": digest})
    with pytest.raises(RecordError, match="does not give its sha256"):
        read_tensors(path)
