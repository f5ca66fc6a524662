"""A tiny model, tiny data, and the command line run on them inside the test process."""

import contextlib
import itertools
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import yaml

from sera_core import cli
from sera_core.testing.tiny import save_tiny_model

NOUNS, COLOURS = ("sky", "sea", "sun", "dog", "cat", "tree"), ("blue", "red", "green", "one", "two", "three")
SMALL = {
    "tokens": {"max_prompt_tokens": 32, "max_response_tokens": 16},
    "training": {
        "max_steps": 2,
        "learning_rate": 0.001,
        "warmup_steps": 0,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    },
    "evaluation": {"prompts": 2, "kl_prompts": 2, "sampling": {"max_new_tokens": 4}},
}


def good_rows(count=24):
    """Conversational preference pairs with distinct prompts, all within the tiny vocabulary."""
    asked = itertools.islice(itertools.product(NOUNS, COLOURS), count)
    return [
        {
            "id": f"row-{i}",
            "prompt": [{"role": "user", "content": f"what is {noun} {colour}"}],
            "chosen": f"{noun} is {colour}",
            "rejected": f"not {colour} {noun}",
        }
        for i, (noun, colour) in enumerate(asked)
    ]


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    code: int
    out: str
    err: str


class Place:
    """A folder of one test's inputs; its methods write an input and return the argument that names it."""

    def __init__(self, folder, model, capfd):
        self.folder, self.model_path, self._capfd = folder, model, capfd
        self.out, self.cache = folder / "out", folder / "cache"

    def file(self, name, content=""):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def rows(self, rows, name="data.jsonl"):
        return "source=" + self.file(name, "".join(json.dumps(row) + "\n" for row in rows))

    def first(self, count=1, **changes):
        """Good data whose first `count` rows have other values; a value may be a function of the row's number."""
        rows = good_rows()
        for i, row in enumerate(rows[:count]):
            row.update({key: value(i) if callable(value) else value for key, value in changes.items()})
        return self.rows(rows)

    def scored(self, change):
        rows = [
            {
                "prompt": row["prompt"],
                "responses": [{"content": row["chosen"], "score": 2.0}, {"content": row["rejected"], "score": 1.0}],
            }
            for row in good_rows()
        ]
        change(rows)
        return self.rows(rows)

    def model(self, change):
        """A copy of the tiny model after `change(folder)`."""
        path = self.folder / "model"
        shutil.copytree(self.model_path, path)
        change(path)
        return f"policy.model={path}"

    def run(self, *arguments, config="dpo", small=True):
        """`sera run` on good data and the tiny model, apart from what `arguments` say."""
        base = self.folder / "small.yaml"
        if small:
            base.write_text(yaml.safe_dump({"extends": config, "name": "small", **SMALL}), encoding="utf-8")
            config = str(base)
            given = {argument.partition("=")[0] for argument in arguments}
            if "source" not in given:
                arguments = (self.rows(good_rows(), "good.jsonl"), *arguments)
            if "policy.model" not in given:
                arguments = (*arguments, f"policy.model={self.model_path}")
        places = () if "--out" in arguments else ("--out", str(self.out))
        return self.sera("run", config, *arguments, *places, "--cache", str(self.cache))

    def sera(self, *arguments):
        self._capfd.readouterr()
        code = 0
        with mock.patch.object(sys, "argv", ["sera", *arguments]):
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code or 0
        return Outcome(code, *self._capfd.readouterr())

    def read(self, name):
        return json.loads((self.out / name).read_text(encoding="utf-8"))
