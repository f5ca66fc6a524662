"""What arms and axes are called: short, told apart by every file system, and in any script."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from sera_core.errors import ConfigError

Place = tuple[str | None, tuple[tuple[str, str, object], ...]]
"""Where an arm stands: its variant, and (axis, label, value) of each axis."""

# Bytes. File systems take 255, encrypted ones 143; a table has less room.
_LONGEST = 100
_SIGNS = frozenset("._=,+-")
# Windows keeps these for devices, whatever follows a dot.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})


def name_of(variant: str | None, point: Mapping[str, str], axes: Iterable[str] | None = None) -> str:
    """The name of a variant at a point of the grid, as `Arm.name` says.

    `axes` are all axes of the grid where `point` leaves some out: an axis has one name everywhere.
    """
    short = short_axes(point if axes is None else axes)
    parts = [] if variant is None else [variant]
    return folder_name(",".join([*parts, *(f"{short[axis]}={label}" for axis, label in point.items())]))


def folder_name(text: str) -> str:
    """A text as the name of a folder: letters, marks and digits of any script in NFC, and ``._=,+-``.

    Anything else becomes ``_``, also a dot or dash at the start; dots at the end go. At most 100 bytes of UTF-8: what
    is longer is cut and ends in a hash of the whole.
    """
    whole = unicodedata.normalize("NFC", text)
    name = re.sub("\0+", "_", "".join(char if _kept(char) else "\0" for char in whole))
    name = re.sub(r"^[.-]+", "_", name).rstrip(".")
    name = f"_{name}" if name.partition(".")[0].casefold() in _DEVICES else name
    if len(name.encode()) <= _LONGEST:
        return name
    end = f"-{_digest(whole)}"
    return name.encode()[: _LONGEST - len(end)].decode(errors="ignore") + end


def run_name(arm: str) -> str:
    """The setting `name` of an arm's runs, which has ASCII letters and digits alone, and ``._-`` inside."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", arm)
    if arm.isascii() and name[:1].isalnum():
        return name
    plain = unicodedata.normalize("NFKD", arm).encode("ascii", "ignore").decode()
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', plain).strip('._-') or 'arm'}-{_digest(arm)}"


def folded(name: str) -> str:
    """The same for names that a file system may take for one: not all of them tell a from A."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def short_axes(axes: Iterable[str]) -> dict[str, str]:
    """Each axis with the shortest end of its dotted path that no other has; the whole path if there is none."""
    ends = {axis: ends_of(axis) for axis in axes}
    taken = {axis: {end for other, own in ends.items() if other != axis for end in own} for axis in ends}
    return {axis: next((end for end in own if end not in taken[axis]), axis) for axis, own in ends.items()}


def point_text(point: Mapping[str, object], axes: Iterable[str] | None = None) -> str:
    """A point of the grid for people to read; `axes` are all axes where `point` leaves some out."""
    short = short_axes(point if axes is None else axes)
    return ", ".join(f"{short[axis]} = {label}" for axis, label in point.items())


def ends_of(axis: str) -> tuple[str, ...]:
    """The ends of a dotted path, the shortest first: ``c``, ``b.c``, ``a.b.c``."""
    parts = axis.split(".")
    return tuple(".".join(parts[at:]) for at in reversed(range(len(parts))))


def check_names(named: Sequence[tuple[str, Place]]) -> None:
    """Refuse names that no folder can have, or two can not have beside each other.

    Raises:
        ConfigError: names the originals, and what to do.
    """
    seen: dict[str, tuple[str, Place]] = {}
    for name, place in named:
        if set(name) <= {"_", ".", "-"}:
            raise ConfigError(
                f"An arm of the ablation would be called '{name}', by the variant {place[0]!r}. Give the variant a "
                "name with a letter or digit."
            )
        other = seen.setdefault(folded(name), (name, place))
        if other[1] is not place:
            raise ConfigError(_alike(other, (name, place)))


def _alike(one: tuple[str, Place], other: tuple[str, Place]) -> str:
    """What two arms differ in that their names do not, and how to tell them apart."""
    (name, (variant, point)), (second, (another, others)) = one, other
    differing, remedies = [], []
    if variant != another:
        differing.append(f"the variants {variant!r} and {another!r}")
        remedies.append("Rename one of the variants.")
    for (axis, label, value), (_, label_there, there) in zip(point, others, strict=True):
        labelled = isinstance(value, dict) and label != label_there
        pair = (label, label_there) if labelled else (value, there)
        if repr(pair[0]) != repr(pair[1]):
            differing.append(f"the {'labels' if labelled else 'values'} {pair[0]!r} and {pair[1]!r} of the axis {axis}")
            by_label = "Give the values labels: an axis may be a name with labelled groups of settings."
            remedies.append("Rename one of the labels." if labelled else by_label)
    what = f"'{name}': " if name == second else f"'{name}' and '{second}', which not every file system tells apart: "
    why = ", written alike in names, which have letters, digits and ._=,+- alone" if name == second else ""
    return f"Two arms of the ablation would be called {what}{' and '.join(differing)}{why}. {' '.join(remedies)}"


def _kept(char: str) -> bool:
    return char.isalnum() or char in _SIGNS or unicodedata.category(char).startswith("M")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:8]
