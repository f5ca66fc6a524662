"""How to run into a bad input: runs with one thing wrong, models and disks that are damaged."""

import errno
import json
import os
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from unittest import mock

from safetensors.torch import load_file, save_file


def preset(name, *arguments):
    return lambda place: place.preset(name, *arguments)


def dpo(*arguments):
    return preset("dpo", *arguments)


def config(text):
    return lambda place: place.config(text)


def run(*arguments):
    """A small run; an argument may be a function of the place."""
    return lambda place: place.run(*(a if isinstance(a, str) else a(place) for a in arguments))


def model(change, *arguments):
    return run(lambda place: place.model(change), *arguments)


def template(text):
    return run(lambda place: place.template(text))


def data(name, content):
    return run(lambda place: "source=" + place.file(name, content))


def rows(*arguments, **changes):
    """A small run whose first three rows have `changes`."""
    return run(lambda place: place.first(3, **changes), *arguments)


def noise(content):
    return run(lambda place: "source.noise=" + place.file("noise.json", content))


def given(context, what):
    """`what` inside a context, made when the test runs."""

    def inside(place):
        with context():
            return what(place)

    return inside


def circle(place):
    place.file("other.yaml", "extends: mine.yaml\n")
    return place.config("extends: other.yaml\n")


def folder(*files):
    """A small run on a folder that holds `files`."""

    def inside(place):
        (place.folder / "folder").mkdir()
        for name in files:
            place.file(f"folder/{name}", "{}\n")
        return place.run(f"source={place.folder / 'folder'}")

    return inside


def plugins(names, *arguments):
    return given(lambda: mock.patch.dict(os.environ, {"SERA_PLUGINS": names}), preset("sera-dpo", *arguments))


def missing_package(name, what):
    return given(lambda: mock.patch.dict(sys.modules, {name: None}), what)


def full(target, *arguments):
    return given(lambda: full_disk(target), run(*arguments))


def full_for(pattern):
    return given(lambda: full_disk_for(pattern), run())


def out(path):
    return lambda place: place.run(out=path(place))


def without(*names):
    """Deletes files of a model folder."""

    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def with_json(name, **values):
    """Sets values in a JSON file of a model folder; None removes a key."""

    def change(folder):
        content = {**json.loads((folder / name).read_text(encoding="utf-8")), **values}
        content = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return change


def with_bytes(name, change):
    """Rewrites a file of a folder as `change` of its bytes."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def with_weights(change):
    """Rewrites each tensor of a model folder as `change(name, tensor)`; None removes it."""

    def rewrite(folder):
        path = folder / "model.safetensors"
        tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
        save_file({n: t.contiguous() for n, t in tensors.items() if t is not None}, path, metadata={"format": "pt"})

    return rewrite


def small_vocabulary(folder):
    """The model forgets all but its first ten tokens; the tokenizer does not."""
    size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    with_json("config.json", vocab_size=10)(folder)
    with_weights(lambda _, tensor: tensor[:10] if tensor.shape[0] == size else tensor)(folder)


def closed_vocabulary(folder):
    """The tokenizer has no token for unknown words."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"] |= {"unk_token": "[none]"}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with_json("tokenizer_config.json", unk_token=None)(folder)


def adapter_of(base):
    """Only an adapter lies in the folder; its model is in the folder `base` below it, or nowhere."""

    def change(folder):
        (folder / "config.json").unlink()
        if base is not None:
            (folder / base).mkdir()
            shutil.copy(folder / "model.safetensors", folder / base)
        content = {"peft_type": "LORA", "base_model_name_or_path": base and str(folder / base)}
        (folder / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")

    return change


def damaged(folder, pattern):
    """Flips one bit near the end of every file below `folder` that matches; there must be one."""
    files = list(folder.glob(pattern))
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(bytes(content))


def remove(*folders):
    for folder in folders:
        shutil.rmtree(folder)


def full_disk(target):
    """The function `target` fails as on a full disk."""
    return mock.patch(target, side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def full_disk_for(pattern):
    """Every file whose name fits `pattern` fails to open for writing, as on a full disk."""
    really = Path.open

    def fails(path, mode="r", *rest, **options):
        if fnmatch(path.name, pattern) and set(mode) & set("wax"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return really(path, mode, *rest, **options)

    return mock.patch.object(Path, "open", fails)
