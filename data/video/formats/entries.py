"""Annotation files as entries that know where they stand, so that a refusal can say so.

Texts are read with single spaces and none around them: public files have leading spaces and stray
line breaks that mean nothing.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.records import write_whole
from data.video.records import Span, Split

_HALF_A_SIGN = re.compile("[\ud800-\udfff]")

AS_PUBLISHED = "restore the file as it was published, or mend or remove this entry"


def clean(text: str) -> str:
    """The same words with single spaces and none around them."""
    return " ".join(text.split())


class _TwiceError(ValueError):
    """A name stands twice in one JSON object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ; of equal ones, JSON's readers keep the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"{twice!r} stands twice in one object")
    return found


@dataclass(frozen=True, slots=True)
class Entry:
    """A part of an annotation file.

    Attributes:
        file: The file.
        place: Where in it, as a reader of the file would look for it; empty for all of it.
        fields: What stands there.
    """

    file: Path
    place: str
    fields: Mapping[str, Any]

    def __str__(self) -> str:
        told = f"{self.file}, {self.place}" if self.place else str(self.file)
        return told.encode(errors="backslashreplace").decode()

    def refused(self, rule: str, way_out: str = AS_PUBLISHED) -> DataError:
        """The error that says where, what is wrong and what to do."""
        return DataError(f"{self}: {rule}; {way_out}")

    def get(self, key: str) -> Any:
        """What stands under `key`.

        Raises:
            DataError: Nothing does.
        """
        if self.fields.get(key) is None:
            raise self.refused(f"{key} is missing")
        return self.fields[key]

    def text(self, key: str) -> str:
        """A text, cleaned; a whole number is taken as its digits.

        Raises:
            DataError: It is missing or something else.
        """
        value = self.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.as_text(key, value)

    def as_text(self, key: str, value: Any) -> str:
        """`value` as a text, cleaned.

        Raises:
            DataError: It is something else, or holds half of a sign.
        """
        if not isinstance(value, str):
            raise self.refused(f"{key}={value!r} must be a text")
        if _HALF_A_SIGN.search(value):
            raise self.refused(f"{key}={value!r} holds half of a sign, which no file can hold")
        return clean(value)

    def text_or(self, key: str, otherwise: str) -> str:
        """As `text`, or `otherwise` where nothing stands."""
        return otherwise if self.fields.get(key) is None else self.text(key)

    def name(self, key: str) -> str:
        """A video's name, which is also its file's without the suffix.

        Raises:
            DataError: It is missing or could not be a file's name.
        """
        return self.as_name(self.text(key))

    def as_name(self, name: str) -> str:
        """`name`, if a file can be called so.

        Raises:
            DataError: It cannot.
        """
        name = self.as_text("name", name)
        if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
            raise self.refused(f"{name!r} cannot be a video's name; a name is that of its file")
        return name

    def number(self, key: str) -> float:
        """A finite number, also one in quotes.

        Raises:
            DataError: It is missing or something else.
        """
        return self.as_number(key, self.get(key))

    def as_number(self, key: str, value: Any) -> float:
        """`value` as a finite number.

        Raises:
            DataError: It is something else.
        """
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.refused(f"{key}={value!r} must be a finite number")
        return number

    def whole(self, key: str) -> int:
        """A whole number.

        Raises:
            DataError: It is missing or something else.
        """
        number = self.number(key)
        if not number.is_integer():
            raise self.refused(f"{key}={self.fields[key]!r} must be a whole number")
        return int(number)

    def seconds(self, key: str) -> float:
        """How long something lasts, in seconds, above 0.

        Raises:
            DataError: It is missing or something else.
        """
        number = self.number(key)
        if number <= 0:
            raise self.refused(f"{key}={self.fields[key]!r} must be above 0 seconds")
        return number

    def as_span(self, key: str, value: Any) -> Span:
        """`value` as two times in seconds, of which nothing more is asked.

        Raises:
            DataError: It is something else.
        """
        if not isinstance(value, list) or len(value) != 2:
            raise self.refused(f"{key}={value!r} must be a start and an end in seconds")
        return self.as_number(key, value[0]), self.as_number(key, value[1])

    def split(self, key: str, splits: Mapping[str, Split]) -> Split:
        """The split that the source calls by one of the names in `splits`.

        Raises:
            DataError: It is missing or none of them.
        """
        value = self.text(key)
        if value not in splits:
            raise self.refused(f"{key}={value!r} must be one of {', '.join(splits)}")
        return splits[value]

    def items(self, key: str) -> list[Any]:
        """A list.

        Raises:
            DataError: It is missing or something else.
        """
        value = self.get(key)
        if not isinstance(value, list):
            raise self.refused(f"{key} must be a list")
        return value

    def entries(self, key: str) -> Iterator[Entry]:
        """The objects of a list, each an entry of its own.

        Raises:
            DataError: It is missing, or something else.
        """
        for number, item in enumerate(self.items(key)):
            yield self.inner(f"{key}[{number}]", item)

    def members(self) -> Iterator[tuple[str, Entry]]:
        """The names and objects that stand here, each object an entry of its own.

        Raises:
            DataError: Something that stands here is no object.
        """
        for key, value in self.fields.items():
            yield key, self.inner(key, value)

    def inner(self, place: str, value: Any) -> Entry:
        """`value` as an entry within this one.

        Raises:
            DataError: It is no object.
        """
        entry = Entry(self.file, f"{self.place}.{place}" if self.place else place, {})
        if not isinstance(value, dict):
            raise entry.refused("must be an object with named fields")
        return Entry(entry.file, entry.place, value)


def present(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those files of `folder` that are there, in the order of `names`."""
    return [folder / name for name in names if (folder / name).is_file()]


def needed(folder: Path, names: Sequence[str], data_set: str) -> list[Path]:
    """As `present`, of files of which there must be one.

    Raises:
        DataError: There is none.
    """
    found = present(folder, names)
    if not found:
        lacks = f"none of {', '.join(names)}" if len(names) > 1 else f"no {names[0]}"
        raise DataError(f"{folder} has {lacks}; put the annotations of {data_set} there")
    return found


def read_text(path: Path) -> str:
    """A whole file of text in UTF-8.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; it must be a readable file of text in UTF-8, "
            "as it was published"
        ) from error


def read_lines(path: Path) -> Iterator[tuple[Entry, str]]:
    """The lines of a file that are not blank, cleaned, each with where it stands.

    Raises:
        DataError: The file cannot be read.
    """
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Entry(path, f"line {number}", {}), clean(line)


def _parsed(place: Entry, text: str) -> Entry:
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except _TwiceError as error:
        raise place.refused(f"{error}", "keep one of them") from error
    except (ValueError, RecursionError) as error:
        raise place.refused(f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise place.refused("must be an object with named fields")
    return Entry(place.file, place.place, value)


def read_json(path: Path) -> Entry:
    """A file that holds one JSON object.

    Raises:
        DataError: It cannot be read or holds something else.
    """
    return _parsed(Entry(path, "", {}), read_text(path))


def read_json_lines(path: Path) -> Iterator[Entry]:
    """A file with a JSON object in each line.

    Raises:
        DataError: It cannot be read or holds something else.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield _parsed(Entry(path, f"line {number}", {}), line)


def read_table(
    path: Path, columns: Sequence[str], *, header: bool, delimiter: str = ","
) -> Iterator[Entry]:
    """The rows of a table, each an entry with at least `columns`.

    Args:
        path: The file.
        columns: Which columns are needed; without a header, all there are, in order.
        header: Whether the first row names the columns.
        delimiter: What stands between columns.

    Raises:
        DataError: It cannot be read, or a row or column is missing or too much.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    names = list(columns)
    try:
        if header:
            names = [clean(name) for name in next(rows, [])]
            missing = [name for name in columns if name not in names]
            if missing:
                raise Entry(path, "line 1", {}).refused(
                    f"must name the column {missing[0]} and names {', '.join(names) or 'none'}"
                )
        for row in rows:
            place = Entry(path, f"line {rows.line_num}", {})
            if not any(map(str.strip, row)):
                continue
            if len(row) != len(names):
                raise place.refused(
                    f"has {len(row)} columns and must have {len(names)}: {', '.join(names)}"
                )
            yield Entry(path, place.place, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise Entry(path, f"line {rows.line_num}", {}).refused(f"is no row: {error}") from error


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Write one JSON object; numbers keep all their digits. Gives back `path`."""
    return write_text(path, json.dumps(value) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a file of text whole. Gives back `path`."""
    write_whole(path, text.encode())
    return path


def write_table(
    path: Path,
    rows: Sequence[Sequence[object]],
    *,
    header: Sequence[str] = (),
    delimiter: str = ",",
) -> Path:
    """Write a table, under a header where there is one. Gives back `path`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    if header:
        writer.writerow(header)
    writer.writerows(rows)
    return write_text(path, text.getvalue())
