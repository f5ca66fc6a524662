"""The devices of this machine, and which parts of them runs hold."""

from __future__ import annotations

import os
from collections.abc import Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"
# Thirds of a device add up to one.
_ROUNDING = 1e-6


def devices_here() -> tuple[str, ...]:
    """The devices that policies can be trained on, as CUDA_VISIBLE_DEVICES calls them."""
    import torch

    if not torch.cuda.is_available():
        return ("0",) if torch.backends.mps.is_available() else ()
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return tuple((named or [str(number) for number in range(count)])[:count])


class Shares:
    """Which parts of some devices are taken."""

    def __init__(self, names: Sequence[str]) -> None:
        self._free = dict.fromkeys(names, 1.0)

    def place(self, count: float) -> tuple[str, ...] | None:
        """The devices that so many fit on now: whole ones, or of a part the fullest that has room; None without any.

        Of 0 devices, it is none: ``()``.
        """
        if count > 1:
            whole = [name for name, free in self._free.items() if free > 1 - _ROUNDING]
            return tuple(whole[: int(count)]) if len(whole) >= count else None
        with_room = [name for name, free in self._free.items() if free > count - _ROUNDING]
        return () if not count else (min(with_room, key=self._free.__getitem__),) if with_room else None

    def take(self, names: Sequence[str], count: float) -> None:
        """Hold what `place` gave for `count`; a negative one gives it back."""
        for name in names:
            self._free[name] -= count / len(names)
