"""One tiny model and data set for all tests of the command line, and a way to call the installed command."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_runs import tiny_config, tiny_overrides, write_pairs

from sera_core import cli
from sera_core.testing.tiny import save_tiny_model

SERA = Path(sys.executable).with_name("sera")


@dataclass(frozen=True)
class Tiny:
    """Where the tiny model and its pairs are."""

    model: Path
    pairs: Path

    def overrides(self, preset, *more):
        return tiny_overrides(preset, self.pairs, self.model, *more)

    def config(self, preset, *more):
        return tiny_config(preset, self.pairs, self.model, *more)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return Tiny(save_tiny_model(folder / "policy"), write_pairs(folder / "pairs.jsonl"))


@pytest.fixture(scope="session")
def environment():
    """What commands see: one thread, so that sums do not depend on the machine, and no allow-list of plugins."""
    kept = {name: value for name, value in os.environ.items() if name not in ("SERA_PLUGINS", "SERA_CACHE")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


@pytest.fixture(scope="session")
def sera(environment):
    """Call ``sera`` with arguments; the finished process, which must have succeeded unless `code` says otherwise."""

    def call(*arguments, code=0, **more):
        done = subprocess.run(
            [str(SERA), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment | more,
        )
        assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done

    call.path = str(SERA)
    return call


@pytest.fixture
def here(monkeypatch, capsys):
    """Call the command inside this process, which has paid for the imports; what it printed."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["sera", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    return call
