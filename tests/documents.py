"""The code blocks of the README and the guides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


class Block(NamedTuple):
    """What stands between two fences.

    Attributes:
      document: the file.
      line: the number of its first line.
      language: "python", "sh" or "", which is commands too.
      text: without the fences.
      reason: why it is not run, from a comment before it; None: it is.
    """

    document: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def name(self) -> str:
        """Document and line."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines of a block of commands, joined where they end in a backslash."""
        joined = re.sub(r"\s*\\\n\s*", " ", self.text)
        lines = (re.sub(r"(^|\s+)# .*", "", line).strip() for line in joined.splitlines())
        return [line for line in lines if line]


def blocks(document: Path) -> list[Block]:
    """All blocks of a document, in order."""
    found, inside, reason = [], None, None
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if match := NOT_RUN.fullmatch(line.strip()):
            reason = match[1]
        elif line.startswith("```") and inside is None:
            inside = (number + 1, line[3:].strip(), [])
        elif line.startswith("```"):
            start, language, lines = inside
            found.append(Block(document, start, language, "\n".join(lines), reason))
            inside = reason = None
        elif inside is not None:
            inside[2].append(line)
    assert inside is None, f"{document}: a block has no end"
    return found
