from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report import latex

UNESCAPED = {
    r"\textbackslash{}": "\\", r"\{": "{", r"\}": "}", r"\$": "$", r"\&": "&", r"\#": "#",
    r"\%": "%", r"\_": "_", r"\textasciicircum{}": "^", r"\textasciitilde{}": "~",
    r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", r"{\char34}": '"',
    r"{\char96}": "`", r"$\pm$": "±", r"\textemdash{}": "—", "{}": "",
}  # fmt: skip
TOKEN = re.compile("|".join(re.escape(token) for token in UNESCAPED) + "|.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 50% #1", r"a\_b \& 50\% \#1"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("--dry-run", "-{}-dry-run"),
        ("91.2 ± 0.3", r"91.2 $\pm$ 0.3"),
        ("''x,,", "'{}'x,{},"),
        ("two\nlines\t", "two lines"),
    ],
)
def test_escapes_by_hand(text: str, expected: str) -> None:
    assert latex.escape(text) == expected


@given(st.text(st.sampled_from("ab \\{}$&#%_^~<>|\"'`-±—,\n")))
def test_escaped_text_holds_no_command_of_its_own_and_reads_back(text: str) -> None:
    escaped = latex.escape(text)
    tokens = TOKEN.findall(escaped)
    assert all(len(token) > 1 or token not in '\\{}$&#%_^~<>|"`' for token in tokens)
    assert "".join(UNESCAPED.get(token, token) for token in tokens) == " ".join(text.split())
    assert re.search(r"--|''|,,", escaped) is None


def test_a_table_has_a_cell_for_every_column() -> None:
    text = latex.table("100% & more", ["Method", "A, %", "B"], [["x_1", "1", "2"], ["y", "—", "3"]])
    assert r"\caption{100\% \& more}" in text
    assert r"\begin{tabular}{@{}lrr@{}}" in text
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0].splitlines()
    assert [line for line in body if line] == [
        r"Method & A, \% & B \\", r"\midrule", r"x\_1 & 1 & 2 \\", r"y & \textemdash{} & 3 \\",
    ]  # fmt: skip
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", text)) == ["table", "tabular"]
    for line in text.split("\n\n"):
        plain = re.sub(r"\\[{}]", "", line)
        assert plain.count("{") == plain.count("}")
