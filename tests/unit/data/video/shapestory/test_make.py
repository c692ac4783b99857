"""Corpora: the same bytes again, odd files as odd as told, and nothing lost on the way."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import av
import numpy as np
import pytest

from core.errors import DataError
from data.video.records import Corpus, Video
from data.video.shapestory.make import ODDITIES, Recipe, make_corpus
from data.video.shapestory.script import Narrating

SMALL = Recipe(train=8, validation=1, test=11)


def digest(root: Path) -> dict[str, str]:
    """Of every file by its path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(SMALL, tmp_path_factory.mktemp("made") / "corpus")


def video(corpus: Corpus, name: str) -> Video:
    (found,) = [one for one in corpus.videos if one.name == name]
    return found


def test_reads_back_equal(corpus: Corpus) -> None:
    assert Corpus.read(corpus.root) == corpus
    for one in corpus.videos:
        assert hashlib.sha256((corpus.root / one.path).read_bytes()).hexdigest() == one.sha256


def test_same_bytes_in_two_processes_and_after_a_cut(corpus: Corpus, tmp_path: Path) -> None:
    root = tmp_path / "again"
    kept: list[None] = []

    def cut() -> None:
        kept.append(None)
        if len(kept) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_corpus(SMALL, root, made=cut)
    assert not (root / "corpus.json").exists()
    with pytest.raises(DataError, match=r"corpus\.json is missing"):
        Corpus.read(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.mp4")}
    assert before
    make_corpus(SMALL, root, workers=2)
    assert digest(root) == digest(corpus.root)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_video_does_not_depend_on_how_many_there_are(corpus: Corpus, tmp_path: Path) -> None:
    fewer = make_corpus(Recipe(train=2, validation=1, test=1, odd_files=False), tmp_path / "few")
    assert video(fewer, "train-00001") == video(corpus, "train-00001")


@pytest.mark.parametrize("snr_db", [-200.0, 200.0])
def test_sound_at_the_edge_of_what_is_taken_can_be_made(snr_db: float, tmp_path: Path) -> None:
    narrating = Narrating(snr_db=snr_db, delay_mean_s=3600.0, delay_std_s=3600.0)
    recipe = Recipe(train=1, validation=1, test=1, odd_files=False, narrating=narrating)
    made = make_corpus(recipe, tmp_path / "made")
    for one in made.videos:
        assert one.duration_s is not None
        for utterance in one.narration:
            assert 0 <= utterance.span[0] <= utterance.span[1] <= one.duration_s


def test_a_file_that_has_changed_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe(train=1, validation=1, test=1, odd_files=False)
    made = make_corpus(recipe, tmp_path / "made")
    whole = digest(made.root)
    file = made.root / made.videos[0].path
    file.write_bytes(file.read_bytes()[:1000])
    (made.root / made.videos[1].path).unlink()
    assert make_corpus(recipe, made.root) == made
    assert digest(made.root) == whole
    (told,) = caplog.messages
    assert told == f"{file} has changed since it was made and is made again"


def test_two_processes_may_make_the_same(tmp_path: Path) -> None:
    """The other one ended first, and took the mark of the making with it."""
    recipe, root = Recipe(train=1, validation=1, test=1, odd_files=False), tmp_path / "made"

    def other() -> None:
        (root / "making.json").unlink(missing_ok=True)

    assert make_corpus(recipe, root, made=other) == Corpus.read(root)


def test_another_seed_gives_another_corpus(corpus: Corpus, tmp_path: Path) -> None:
    other = make_corpus(
        Recipe(seed=1, train=1, validation=1, test=1, odd_files=False), tmp_path / "other"
    )
    assert video(other, "train-00000").events != video(corpus, "train-00000").events


@pytest.mark.parametrize("name", ["train-00000", "test-00009"])
def test_files_show_and_sound_as_they_were_made(corpus: Corpus, name: str) -> None:
    """Pixels at a gold object's centre have its colour, and the sound is as long as the video."""
    found = video(corpus, name)
    assert found.path.endswith("webm" if name == "test-00009" else "mp4")
    assert found.gold is not None and found.duration_s is not None
    with av.open(str(corpus.root / found.path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(str(corpus.root / found.path)) as file:
        stream = file.streams.audio[0]
        samples = sum(frame.samples for frame in file.decode(audio=0))
        length_s = samples / stream.rate
    assert len(frames) == round(found.duration_s * 4)
    assert length_s == pytest.approx(found.duration_s, abs=0.2)
    from data.video.shapestory.world import COLORS

    errors = []
    for objects in found.gold.objects:
        for thing in objects:
            for box in thing.track[2:]:
                if thing.noun in ("circle", "square") and thing.motion != "blinks":
                    row, column = (box.y0 + box.y1) / 2, (box.x0 + box.x1) / 2
                    inside = 8 < row < 56 and 8 < column < 56
                    if inside and len(objects) == 1:
                        pixel = frames[round(box.time_s * 4)][int(row), int(column)]
                        errors.append(np.abs(pixel.astype(int) - COLORS[thing.color]).mean())
    assert errors and np.median(errors) < 30


def test_odd_files_are_odd(corpus: Corpus) -> None:
    odd = {oddity: name for name, oddity in corpus.made_with["odd"].items()}
    assert set(odd) == set(ODDITIES)

    def opened(oddity: str) -> av.container.InputContainer:
        return av.open(str(corpus.root / video(corpus, odd[oddity]).path))

    with opened("no-sound") as file:
        assert not file.streams.audio
    assert video(corpus, odd["no-sound"]).audio_hz is None
    with opened("variable-rate") as file:
        stamps = [frame.pts for frame in file.decode(video=0)]
        assert len(set(np.diff(np.array(stamps)).tolist())) > 1
    with opened("rotated") as file:
        frame = next(file.decode(video=0))
        assert frame.rotation in (90, -90, 270)
    truncated = video(corpus, odd["truncated"])
    assert truncated.duration_s is not None
    with opened("truncated") as file:
        last_s = max(
            float(packet.pts * packet.time_base)
            for packet in file.demux(video=0)
            if packet.pts is not None and packet.time_base is not None
        )
    assert last_s < 0.9 * truncated.duration_s
    with pytest.raises(av.FFmpegError):
        opened("corrupt")


def test_gold_is_apart(corpus: Corpus) -> None:
    for one in corpus.videos:
        assert one.gold is not None
        told = json.dumps({**one.to_json(), "gold": None})
        assert "aligned" not in told and "track" not in told
        assert len(one.gold.objects) == len(one.gold.parses) == len(one.events)
        assert len(one.gold.alignments) == len(one.narration)


def test_swapped_sound_is_told_in_gold(tmp_path: Path) -> None:
    recipe = Recipe(
        train=1, validation=1, test=1, odd_files=False, narrating=Narrating(swapped_sound=1.0)
    )
    for one in make_corpus(recipe, tmp_path / "swapped").videos:
        assert one.gold is not None
        assert one.gold.swapped_sound == tuple(event.span for event in one.events)


def test_folders_of_something_else_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="made otherwise"):
        make_corpus(Recipe(seed=3, train=8, validation=1, test=11), corpus.root)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        make_corpus(SMALL, tmp_path)
    with pytest.raises(DataError, match="is a file"):
        make_corpus(SMALL, tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"cannot be written.*another folder"):
        make_corpus(SMALL, tmp_path / "notes.txt" / "below")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"train": 5}, "train=5: must be at least 6"),
        ({"validation": 0}, "validation=0: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be from 0"),
        ({"narrating": Narrating(noise=(0.5, 1.5))}, "narration-noise=1.5: must be a share"),
        ({"narrating": Narrating(drop=2)}, "drop=2: must be a probability"),
        ({"narrating": Narrating(delay_mean_s=math.nan)}, "delay-mean=nan: must be from -3600"),
        ({"narrating": Narrating(delay_mean_s=-math.inf)}, "delay-mean=-inf: must be from -3600"),
        ({"narrating": Narrating(delay_std_s=math.inf)}, "delay-std=inf: must be from 0 to 3600"),
        ({"narrating": Narrating(snr_db=math.nan)}, "snr=nan: must be from -200"),
        ({"narrating": Narrating(snr_db=1e5)}, r"snr=100000: must be from -200 to 200"),
    ],
)
def test_bad_recipes_are_refused(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        Recipe(**changes)  # type: ignore[arg-type]
