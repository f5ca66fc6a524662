"""Run as a script: kills tiny runs at many moments, gives the same command again, and prints what was left as JSON.

Everything happens in forked children, so that the imports are paid for once. A moment is ``what:where[:number]``:
``start`` and ``progress`` stop when the reporter hears of a stage, ``step`` at an optimiser step, ``torn`` with half a
file under its temporary name, ``before`` and ``after`` around the rename that makes a file or folder valid, ``half``
with half a safetensors file, ``link`` while the final model is put together.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path

from tiny_runs import tiny_config

from sera_core import curation, host, runner
from sera_core.hookspecs import hookimpl
from sera_core.testing.artefacts import artefact_hashes

# Two epochs in batches of two take 24 steps, with checkpoints at 10 and 20; a small budget makes many batches.
LONGER = (
    "training.per_device_train_batch_size=2",
    "training.num_train_epochs=2",
    "generated.generator={name: transformers, token_budget: 64}",
    "evaluation.generator={name: transformers, token_budget: 64}",
)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Watcher:
    """Reporter and plugin in one: notes what is computed and where training begins; dies at the wanted moment."""

    def __init__(self, moment):
        self.what, _, rest = moment.partition(":")
        self.where, _, number = rest.partition(":")
        self.number = int(number or 0)
        self.computed, self.reused, self.steps = [], [], {}

    def stage_started(self, where):
        if (self.what, self.where) == ("start", where):
            kill()
        heard = []

        def progress(done, total):
            heard.append(done)
            if (self.what, self.where) == ("progress", where) and len(heard) == self.number:
                assert done < total, f"{where}: all done at call {len(heard)}"
                kill()

        return progress

    def stage_finished(self, where, seconds, reused):
        (self.reused if reused else self.computed).append(where)

    def iteration_finished(self, values):
        pass

    @hookimpl
    def sera_step_finished(self, record):
        self.steps.setdefault(str(record.iteration), record.step)
        if self.what == "step" and (self.where, self.number) == (f"iter_{record.iteration}", record.step):
            kill()


def arm(watcher):
    """Make file operations die where the moment says so."""
    replace, link, save_file = os.replace, os.link, curation.save_file

    def dying_replace(source, target):
        here = str(source).endswith(watcher.where) or str(target).endswith(watcher.where)
        if here and watcher.what == "torn":
            os.truncate(source, Path(source).stat().st_size // 2)
        if here and watcher.what in ("torn", "before"):
            kill()
        replace(source, target)
        if here and watcher.what == "after":
            kill()

    def dying_link(source, target):
        if watcher.what == "link" and str(target).endswith(watcher.where):
            kill()
        link(source, target)

    def dying_save(tensors, path):
        save_file(tensors, path)
        if watcher.what == "half" and str(path).endswith(watcher.where):
            os.truncate(path, path.stat().st_size // 2)
            kill()

    os.replace, os.link, curation.save_file = dying_replace, dying_link, dying_save


def child(action):
    """Run `action` in a process of its own; the signal that ended it, 0 for none."""
    pid = os.fork()
    if pid == 0:
        # Whatever goes wrong, a child must not return into the parent's loop.
        try:
            action()
        finally:
            sys.stderr.flush()
            os._exit(1 if sys.exc_info()[0] else 0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise SystemExit(f"child failed with {os.WEXITSTATUS(status)}")
    return 0


def go(config, folder, moment="never"):
    """One attempt in this process; notes beside the run what it computed and reused."""
    watcher = Watcher(moment)
    arm(watcher)
    manager = host.build_manager(extra=[("watcher", watcher)])
    runner.run(config, out=folder / "run", cache=folder / "cache", reporter=watcher, manager=manager)
    seen = {"computed": watcher.computed, "reused": watcher.reused, "steps": watcher.steps}
    (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")


def attempt(config, folder, moment):
    """Kill at `moment` (not at all for ``never``), then run to the end; what was left and what the second run did."""
    folder.mkdir()
    signalled = 0 if moment == "never" else child(lambda: go(config, folder, moment))
    before = sorted(p.relative_to(folder / "run").as_posix() for p in (folder / "run").rglob("*") if p.is_file())
    child(lambda: go(config, folder))
    seen = json.loads((folder / "seen.json").read_text(encoding="utf-8"))
    return {"signal": signalled, "before": before, "hashes": artefact_hashes(folder / "run"), **seen}


def main(root, preset, model, pairs, moments):
    # Every training collects garbage; what was imported is none of it.
    gc.freeze()
    config = tiny_config(preset, Path(pairs), Path(model), *LONGER)
    results = {}
    for number, moment in enumerate(["never", *moments]):
        results[moment] = attempt(config, root / str(number), moment)
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5], sys.argv[5:])
