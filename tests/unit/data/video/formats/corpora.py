"""Corpora to write and read back, and how."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

from hypothesis import strategies as st

from data.video.formats.table import Format
from data.video.records import (
    SPLITS,
    Corpus,
    Event,
    Gold,
    Moment,
    Question,
    Span,
    Utterance,
    Video,
)

SECONDS = st.floats(0, 5000, allow_nan=False)
WORDS = st.text("abcXYZ 019'\"#;:.é猫\t", min_size=1, max_size=12).map(
    lambda t: " ".join(t.split())
)
TEXTS = WORDS.filter(bool)
COMMA_TEXTS = st.one_of(
    TEXTS, st.sampled_from(["one, two", 'a "quoted", text', "a##b", " c,  d.\n"])
)
NAMES = st.one_of(
    st.from_regex(r"\A[A-Za-z0-9_-]{1,8}\Z"), st.integers(0, 99).map(lambda n: f"video{n}")
)


@st.composite
def spans(draw: st.DrawFn, duration_s: float | None) -> Span:
    end = 5000.0 if duration_s is None else duration_s
    times = st.floats(0, end, allow_nan=False)
    one, other = draw(st.tuples(times, times).filter(lambda both: both[0] != both[1]))
    return min(one, other), max(one, other)


@st.composite
def questions(draw: st.DrawFn, told: list[str]) -> Question:
    answer = draw(st.sampled_from(told)) if told else draw(COMMA_TEXTS)
    others = draw(st.lists(COMMA_TEXTS.filter(lambda text: text != answer), max_size=1))
    kind = draw(st.sampled_from(["open", "few", "five"]))
    if kind == "open":
        return Question(draw(TEXTS), answer)
    if kind == "five":
        others = [f"distractor {number}" for number in range(4)]
    candidates = draw(st.permutations([answer, *others]))
    span = draw(st.none() | spans(None))
    return Question(draw(TEXTS), answer, tuple(candidates), span)


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    """A corpus that tells everything a record can, of all splits."""
    topics = draw(st.lists(TEXTS, unique=True, max_size=3))
    steps = st.lists(TEXTS, unique=True, min_size=1, max_size=4)
    recipes = {topic: tuple(draw(steps)) for topic in topics}
    videos: list[Video] = []
    for name in draw(st.lists(NAMES, unique=True, max_size=5)):
        topic = draw(st.sampled_from([*topics, ""]))
        duration_s = draw(st.none() | st.floats(0.5, 5000))
        some_spans = spans(duration_s)
        step = st.sampled_from(["", *recipes.get(topic, ())])
        events = draw(st.lists(st.builds(Event, some_spans, COMMA_TEXTS | st.just(""), step)))
        captions = draw(st.lists(COMMA_TEXTS, max_size=3))
        told = [*captions, *(event.caption for event in events if event.caption)]
        moments = st.builds(
            Moment,
            st.just(""),
            COMMA_TEXTS,
            st.lists(some_spans, min_size=1, max_size=3).map(sorted).map(tuple),
            st.dictionaries(st.integers(0, 75), st.tuples(*[st.integers(0, 4)] * 3), max_size=3),
        )
        given_moments = draw(st.lists(moments, max_size=3))
        videos.append(
            Video(
                name=name,
                path=f"videos/{len(videos) % 2}/{name}.{draw(st.sampled_from(['mp4', 'webm']))}",
                split=draw(st.sampled_from(SPLITS)),
                topic=topic,
                duration_s=duration_s,
                clip=draw(st.sampled_from([None, None, draw(some_spans)])),
                narration=(Utterance((0.0, 1.0), "hello"),),
                narration_noise=0.25,
                events=tuple(sorted(events, key=lambda event: event.span[0])),
                captions=tuple(captions),
                paragraph="First, something.",
                questions=tuple(draw(st.lists(questions(told), min_size=bool(told), max_size=3))),
                moments=tuple(
                    Moment(
                        draw(st.sampled_from([str(1000 * len(videos) + n), f"q{len(videos)}-{n}"])),
                        moment.query,
                        moment.spans,
                        moment.saliency,
                    )
                    for n, moment in enumerate(given_moments)
                ),
                fps=4.0,
                size=(64, 64),
                audio_hz=8000,
                sha256="0" * 64,
                gold=Gold(),
            )
        )
    return Corpus(Path("nowhere"), "made", tuple(videos), recipes)


def by_name(videos: Iterable[Video]) -> list[Video]:
    return sorted(videos, key=lambda video: video.name)


def held(module: Format, corpus: Corpus) -> list[Video]:
    return by_name(v for v in map(module.projected, corpus.videos) if v is not None)


def read_back(module: Format, corpus: Corpus) -> Corpus | None:
    """Write `corpus` with a file for each video and read it; None if nothing was written."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        root = Path(name)
        (root / "videos").mkdir()
        for video in corpus.videos:
            (root / video.path).parent.mkdir(exist_ok=True)
            (root / video.path).touch()
        annotations = root / "annotations"
        written = module.export(corpus, annotations)
        assert sorted(written) == sorted(p for p in annotations.rglob("*") if p.is_file())
        return module.read(annotations, root) if written else None


def check_round_trip(module: Format, corpus: Corpus) -> Corpus | None:
    """What is read back is what the format holds, to the last digit, and holds all of itself."""
    found = read_back(module, corpus)
    assert by_name(found.videos if found else ()) == held(module, corpus)
    if found:
        assert held(module, found) == by_name(found.videos)
    return found


def write(path: Path, value: object) -> None:
    """A file of text, or of JSON for anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
