"""Run as a script: trains tiny models, is killed at many moments, trains on, and prints digests as JSON."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import train_cases as cases
import transformers

from sera_core.train import checkpoint, run
from sera_core.train.lora import LoraOptions

KILLS = {
    "full": ("step 1", "step 2", "step 4", "step 5", "mid-checkpoint", "sealed", "mid-save", "replaced", "mid-delete"),
    "lora": ("step 5", "mid-save"),
    "dataset": ("step 3", "step 5", "step 6", "mid-save"),
    "refined": ("step 3", "step 5"),
    "refined-dataset": ("step 5",),
}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def requests(folder):
    """Uninterrupted-run recipes: everything random or stateful is on."""
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "lr_scheduler_type": "cosine"}
    full = cases.request(
        folder,
        load_model=lambda: cases.tiny_model(attention_dropout=0.3),
        policy_is_reference=False,
        keep_dropout=True,
        algebra=cases.algebra(smoother=cases.MovingThreshold(), reweighter=cases.Softmax()),
        training=training,
        checkpoint_every=2,
    )
    lora = cases.request(folder, lora=LoraOptions(r=2, dropout=0.1), training=training, checkpoint_every=2)
    dropout = {"load_model": lambda: cases.tiny_model(attention_dropout=0.3), "keep_dropout": True}
    # Measured before steps 1, 4 and 7, between which there are checkpoints.
    dataset = cases.request(
        folder,
        policy_is_reference=False,
        algebra=cases.algebra(smoother=cases.MovingThreshold(), reweighter=cases.Telling(every=0.75)),
        pairs=cases.make_pairs(flipped=(True, False, None)),
        training=training,
        checkpoint_every=2,
        **dropout,
    )
    extras = {"load_reference": cases.tiny_model, "prefixed": cases.prefixed(cases.make_pairs(), cases.tiny_model())}
    refined = {
        kind: cases.request(
            folder,
            policy_is_reference=False,
            algebra=cases.refined(cases.Softmax(), scope),
            training=training,
            checkpoint_every=2,
            **dropout,
            **extras,
        )
        for kind, scope in (("refined", "window"), ("refined-dataset", "dataset"))
    }
    return {"full": full, "lora": lora, "dataset": dataset, **refined}


def arm(moment):
    """Arrange a kill at `moment`; gives the step observer."""
    if moment == "mid-checkpoint":
        transformers.Trainer._save_rng_state = lambda *_: kill()
    if moment == "sealed":
        sealed = run.Checkpoints.on_save

        def on_save(self, args, state, control, **kwargs):
            sealed(self, args, state, control, **kwargs)
            if state.global_step == 4:
                kill()

        run.Checkpoints.on_save = on_save
    if moment == "mid-save":
        run.save_policy = lambda model, _, path, __: (model.save_pretrained(path), kill())
    if moment == "replaced":
        run.delete_checkpoints = lambda _, complete=True: kill() if complete else None
    if moment == "mid-delete":
        checkpoint.shutil.rmtree = lambda path: path.name == "checkpoint-6" and kill()
    return lambda record: kill() if moment == f"step {record.step}" else None


def child(action):
    """Run `action` in a process of its own; the signal that ended it, 0 for none."""
    pid = os.fork()
    if pid == 0:
        action()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise SystemExit(f"child failed with {os.WEXITSTATUS(status)}")
    return 0


def digests(folder):
    files = (folder / "model" / "model.safetensors", folder / "steps.jsonl", folder / "pairs.arrow")
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def main(root):
    # Every training collects garbage; what was imported is none of it.
    gc.freeze()
    results = {}
    for kind, moments in KILLS.items():
        for moment in (None, *moments):
            folder = root / f"{kind}-{moment}".replace(" ", "-")
            signalled = child(lambda m=moment, k=kind, f=folder: run.train(requests(f)[k], arm(m)))
            resumed = root / f"{folder.name}.resumed"
            if moment is not None:
                child(
                    lambda k=kind, f=folder, r=resumed: r.write_text(
                        str(run.train(requests(f)[k], cases.ignore).resumed_from)
                    )
                )
            results[f"{kind} {moment}"] = {
                "signal": signalled,
                "resumed": int(resumed.read_text()) if moment else 0,
                "digests": digests(folder),
                "left": sorted(path.name for path in folder.iterdir()),
            }
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
