"""Run as a script: starts `sera` in two processes, as a launcher would, and prints how they ended as JSON.

Standard input holds launches by name: ``arguments`` for the command, ``kill`` a pattern for files of the run's folder
whose appearance ends both ranks at once, ``break`` a rank whose training raises. Ranks are forked children, so that the
imports are paid for once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

from sera_core import cli, runner, training
from sera_core.errors import ModelError

assert runner
WORLD = 2


def environment(rank, port):
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def broken(request, on_step):
    raise ModelError("This rank is broken.")


def become(rank, port, launch, folder):
    """Turn this forked process into one rank; does not return."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_CREAT | os.O_WRONLY), number)
    os.environ.update(environment(rank, port))
    sys.argv = ["sera", *launch["arguments"]]
    if launch.get("break") == rank:
        training.train = broken
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def perform(launch, folder):
    """Start both ranks and wait for them."""
    # As with a launcher, the store in which ranks meet outlives them.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    began, ranks = time.monotonic(), []
    for rank in range(WORLD):
        pid = os.fork()
        if pid == 0:
            become(rank, store.port, launch, folder)
        ranks.append(pid)
    if "kill" in launch:
        while not list(Path(launch["folder"]).glob(launch["kill"])):
            assert os.waitpid(ranks[0], os.WNOHANG) == (0, 0), (folder / "err0").read_text()
            assert time.monotonic() - began < 60
            time.sleep(0.005)
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    texts = {name: [(folder / f"{name}{rank}").read_text() for rank in range(WORLD)] for name in ("out", "err")}
    return {"codes": codes, "seconds": time.monotonic() - began, **texts}


if __name__ == "__main__":
    results = {}
    for name, launch in json.load(sys.stdin).items():
        with tempfile.TemporaryDirectory() as scratch:
            results[name] = perform(launch, Path(scratch))
    sys.stdout.write(json.dumps(results))
