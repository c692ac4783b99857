"""LaTeX of tables and figures, for any engine and with no package but booktabs and graphicx."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "`": r"{\char96}",
    "±": r"$\pm$",
    "—": r"\textemdash{}",
    "\x00": "{}",
}
_LIGATURE = re.compile(r"(?<=([-',]))(?=\1)")


def escape(text: str) -> str:
    r"""Text that LaTeX shows as it is, in one line; no command, ligature or comment is left in it.

    >>> escape("50% of a_b")
    '50\\% of a\\_b'
    """
    apart = _LIGATURE.sub("\x00", " ".join(text.split()))
    return "".join(_SPECIAL.get(character, character) for character in apart)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A floating table, first column to the left and the others to the right.

    It is set at the width of the text where it would be wider.
    """
    lines = [" & ".join(escape(cell) for cell in row) + r" \\" for row in (head, *rows)]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            r"\small",
            r"\setlength{\tabcolsep}{4pt}",
            r"\sbox0{%",
            rf"\begin{{tabular}}{{@{{}}l{'r' * (len(head) - 1)}@{{}}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}}",
            r"\ifdim\wd0>\linewidth \resizebox{\linewidth}{!}{\usebox0}\else \usebox0\fi",
            r"\end{table}",
        ]
    )


def figure(caption: str, path: str) -> str:
    """A floating figure over the width of the text; `path` needs no escape."""
    return "\n".join(
        [
            r"\begin{figure}[htbp]",
            r"\centering",
            rf"\includegraphics[width=\linewidth]{{{path}}}",
            rf"\caption{{{escape(caption)}}}",
            r"\end{figure}",
        ]
    )
