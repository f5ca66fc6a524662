"""`python -m sera_core` is the command `sera`, for launchers that start a module."""

from __future__ import annotations

from sera_core.cli import main

if __name__ == "__main__":
    main()
