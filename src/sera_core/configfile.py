"""Reading configurations: files, presets, `extends`, overrides. Plain dictionaries in, plain dictionaries out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sera_core.errors import ConfigError, suggest

CONFIGS = Path(__file__).parent / "configs"
BY_ITERATION = "by_iteration"
# Keys whose value is a component; a bare string there means {name: string}.
_SPEC_KEYS = frozenset(
    {"source", "scorer", "selector", "labeler", "generator", "loss", "smoother", "reweighter", "judge"}
)

# Keys whose value is a list of components.
_SPEC_LISTS = frozenset({"transforms"})


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key may stand only once in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, or ConstructorError for a key given twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice; keep one", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


def presets() -> dict[str, Path]:
    """Shipped configurations by name: ``dpo`` for configs/runs/dpo.yaml."""
    return {path.stem: path for path in sorted((CONFIGS / "runs").glob("*.yaml"))}


def locate(name: str) -> Path:
    """The file a configuration argument means: a path, or the name of a preset.

    Raises:
        ConfigError: neither a file nor a preset.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = presets()
    key = path.stem if path.parent.name in {"", "runs"} else name
    if key in known and (path.suffix in {"", ".yaml"}):
        return known[key]
    raise ConfigError(f"No configuration file '{name}', and no preset of that name. {suggest(name, known)}")


def read(path: Path) -> dict[str, Any]:
    """A configuration file as a dictionary, with `extends` resolved (a preset name, or a path beside the file).

    Raises:
        ConfigError: not YAML, not a mapping, or `extends` runs in a circle.
    """
    return _read(path, ())


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"'extends' runs in a circle: {' -> '.join(str(p) for p in (*seen, path))}. Remove one.")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(raw, dict):
        came = "nothing" if raw is None else type(raw).__name__
        raise ConfigError(f"{path} must hold a mapping of settings such as 'extends: dpo', got {came}.")
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"{path}: 'extends' must be one preset's name or one file, got {base!r}.")
    beside = path.parent / base
    parent = _read(beside if beside.is_file() else locate(base), (*seen, path.resolve()))
    return merge(parent, raw)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping.

    A component named differently in `over` replaces the one in `base`, options included; the same name keeps the
    options `over` does not mention.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if key in _SPEC_KEYS:
            old, value = as_spec(old), as_spec(value)
        if isinstance(old, dict) and isinstance(value, dict) and _replaces(old, value, key):
            old = None
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _replaces(old: Mapping[str, Any], value: Mapping[str, Any], key: str) -> bool:
    if BY_ITERATION in old or BY_ITERATION in value:
        return True
    return key in _SPEC_KEYS and value.get("name", old.get("name")) != old.get("name")


def as_spec(value: object) -> object:
    """A component written as a bare name becomes ``{name: ...}``; anything else is returned as it is."""
    return {"name": value} if isinstance(value, str) else value


def override(raw: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply ``key.path=value`` arguments in order; values are YAML, a list index is a number in the path.

    Raises:
        ConfigError: an argument without '=', or a path through a value that has no keys.
    """
    result = dict(raw)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(part.strip() for part in path.split(".")):
            raise ConfigError(f"Override '{assignment}' is not of the form key.path=value, such as seed=1.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"Override '{assignment}': the value is not valid YAML: {error}\nQuote text with special characters."
            ) from error
        result = _set(result, path.strip().split("."), value, assignment)
    return result


def set_path(raw: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    """`raw` with the setting at a dotted `path` changed to `value`.

    Raises:
        ConfigError: the path leads through a value that has no keys.
    """
    result: dict[str, Any] = _set(raw, path.split("."), value, f"{path}={value}")
    return result


def _set(node: object, path: list[str], value: object, assignment: str) -> Any:  # noqa: ANN401
    key, rest = path[0], path[1:]
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"Override '{assignment}': '{key}' is not an index into a list of {len(node)}.")
        changed = _set(node[int(key)], rest, value, assignment) if rest else value
        return [*node[: int(key)], changed, *node[int(key) + 1 :]]
    if node is not None and not isinstance(node, dict):
        raise ConfigError(f"Override '{assignment}': '{key}' is inside {node!r}, which has no settings of its own.")
    child = (node or {}).get(key)
    if rest:
        return {**(node or {}), key: _set(_spelled(key, child, rest[0]), rest, value, assignment)}
    if key in _SPEC_KEYS or isinstance(value, dict):
        return merge(node or {}, {key: value})
    return {**(node or {}), key: value}


def _spelled(key: str, child: object, place: str) -> object:
    """What stands at a key, with a bare component name as a mapping so that a path may lead on to its options.

    Of a list of components it is the one at the index `place`; a list that is not there has no entries.
    """
    if key in _SPEC_LISTS and (child is None or isinstance(child, list)):
        return [as_spec(item) if place == str(index) else item for index, item in enumerate(child or [])]
    return as_spec(child) if key in _SPEC_KEYS else child


def at_iteration(raw: object, iteration: int) -> Any:  # noqa: ANN401
    """Replace every ``{by_iteration: [a, b, ...]}`` by the entry of `iteration` (from 1); the last entry repeats.

    Raises:
        ConfigError: by_iteration holds no list, an empty one, or stands beside other keys.
    """
    if isinstance(raw, dict):
        if BY_ITERATION in raw:
            entries = raw[BY_ITERATION]
            if len(raw) > 1 or not isinstance(entries, list) or not entries:
                raise ConfigError(f"by_iteration must be the only key and hold a list with an entry, got {raw!r}.")
            return at_iteration(entries[min(iteration, len(entries)) - 1], iteration)
        return {key: at_iteration(value, iteration) for key, value in raw.items()}
    if isinstance(raw, list):
        return [at_iteration(item, iteration) for item in raw]
    return raw
