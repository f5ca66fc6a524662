"""The documentation as data: pages, fenced blocks with the marker above them, tables, links."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")) + tuple(
    sorted((ROOT / "docs").glob("*.md"))
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (\S+) -->\n\Z")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    mark: str | None

    def __str__(self):
        return f"{self.page}:{self.line}"


@cache
def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def names():
    return [page.relative_to(ROOT).as_posix() for page in PAGES]


def blocks(language):
    found = []
    for name in names():
        text = text_of(name)
        for match in _FENCE.finditer(text):
            mark = _MARK.search(text[: match.start()])
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(name, line, match[1], match[2], mark[1] if mark else None))
    return [block for block in found if block.language == language]


def without_blocks(name):
    return _FENCE.sub("", text_of(name))


def section(name, heading):
    """The text below a heading of any level, up to the next heading."""
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text_of(name), re.MULTILINE | re.DOTALL)
    assert match, f"{name} has no heading '{heading}'"
    return match[1]


def rows(text):
    """Cells of every table row but headings and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = {i for i, row in enumerate(cells) if all(re.fullmatch(r"-+", cell) for cell in row)}
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


def ticked(text):
    return re.findall(r"`([^`]+)`", text)
