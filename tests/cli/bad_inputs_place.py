"""A tiny model, tiny data, and the command line run on them inside the test process."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from unittest import mock

import yaml
from filelock import FileLock

from sera_core import cli

NOUNS, COLOURS = ("sky", "sea", "sun", "dog", "cat", "tree"), ("blue", "red", "green", "one", "two", "three")
SMALL = {
    "tokens": {"max_prompt_tokens": 32, "max_response_tokens": 16},
    "training": {
        "max_steps": 2,
        "num_train_epochs": None,
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
            "prompt": user(f"what is {noun} {colour}"),
            "chosen": f"{noun} is {colour}",
            "rejected": f"not {colour} {noun}",
        }
        for i, (noun, colour) in enumerate(asked)
    ]


def user(text):
    return [{"role": "user", "content": text}]


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    code: int
    out: str
    err: str


class Place:
    """A folder of one test's inputs. Methods that write an input return the argument that names it."""

    def __init__(self, folder, model, capfd):
        self.folder, self.tiny, self._capfd = folder, model, capfd
        self.out, self.cache = folder / "out", folder / "cache"

    def file(self, name, content=""):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def rows(self, rows, name="data.jsonl"):
        return "source=" + self.file(name, "".join(json.dumps(row) + "\n" for row in rows))

    def first(self, count, **changes):
        """Good data whose first `count` rows have other values."""
        rows = good_rows()
        for row in rows[:count]:
            row.update(changes)
        return self.rows(rows)

    def scored(self, score):
        """Good data as two scored answers; the first row's better answer has `score` (the other one has 1)."""
        rows = [
            {
                "prompt": row["prompt"],
                "responses": [{"content": row["chosen"], "score": 2.0}, {"content": row["rejected"], "score": 1.0}],
            }
            for row in good_rows()
        ]
        rows[0]["responses"][0]["score"] = score
        return self.rows(rows)

    def model(self, change):
        """A copy of the tiny model after `change(folder)`."""
        path = self.folder / "model"
        shutil.copytree(self.tiny, path)
        change(path)
        return f"policy.model={path}"

    def template(self, text):
        return self.model(lambda folder: (folder / "chat_template.jinja").write_text(text, encoding="utf-8"))

    def small_run(self, *arguments, config="dpo", out=None):
        """Arguments of a run on good data and the tiny model, apart from what `arguments` say."""
        base = self.file("small.yaml", yaml.safe_dump({"extends": config, "name": "small", **SMALL}))
        given = {argument.partition("=")[0] for argument in arguments}
        data = () if "source" in given else (self.rows(good_rows(), "good.jsonl"),)
        model = () if "policy.model" in given else (f"policy.model={self.tiny}",)
        return ("run", base, *data, *model, *arguments, "--out", str(out or self.out), "--cache", str(self.cache))

    def run(self, *arguments, **options):
        return self.sera(*self.small_run(*arguments, **options))

    def preset(self, name, *arguments):
        """A preset as it is; only for what must be refused before anything is computed."""
        return self.sera("run", name, *arguments, "--out", str(self.out), "--cache", str(self.cache))

    def config(self, text):
        return self.preset(self.file("mine.yaml", text))

    def sera(self, *arguments):
        self._capfd.readouterr()
        code = 0
        with mock.patch.object(sys, "argv", ["sera", *arguments]):
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code or 0
        return Outcome(code, *self._capfd.readouterr())

    def apart(self, *arguments, before="", **environment):
        """The same in a process of its own, after the statements `before`."""
        code = f"{before}\nfrom sera_core.cli import main\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def after(self, change):
        """A good run, then `change()`, then the same run again, which must end with the same weights."""
        first = self.run()
        assert first.code == 0, first.err
        weights = (self.out / "model" / "model.safetensors").read_bytes()
        change()
        again = self.run()
        assert (self.out / "model" / "model.safetensors").read_bytes() == weights
        return again

    def held(self):
        """A run while somebody else holds the folder."""
        self.out.mkdir()
        with FileLock(self.out / ".lock"):
            return self.run()

    def read(self, name):
        return json.loads((self.out / name).read_text(encoding="utf-8"))
