"""Writes docs/compositions.md: what goes with what, as the plan itself decides it.

python docs/tables/compositions.py
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from page_table import table

from sera_core.catalog import Catalog
from sera_core.errors import ConfigError
from sera_core.host import build_manager
from sera_core.plan import make_plan

PAGE = Path(__file__).parents[1] / "compositions.md"
# Options without a default, or with one that only some sources have.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "reweighter:wasserstein_discrete": {"cap": 4.0},
    "selector:threshold": {"minimum": 0.0},
    "selector:top": {"fraction": 0.7},
    "selector:random": {"fraction": 0.7},
    "selector:curriculum": {"stage": 1},
}
# Distributions whose components the page is about; a reader's own plugins are not listed.
OURS = ("sera-core", "sera-plugin-dro", "sera-plugin-irm", "sera-plugin-spa", "sera-plugin-srdpo")
HEAD = """# What goes with what

Generated from the installed components by `python docs/tables/compositions.py`; a test keeps it so. Every combination
below was planned, with default options where there are any. `sera run` refuses the others with the reason given, before
any compute; a test trains two steps of every valid combination of the usual components, and each of them must act.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page as Markdown."""
    catalog = Catalog.from_manager(build_manager())
    names = {role: ours(catalog, role) for role in ("objective", "transform", "smoother", "reweighter")}
    names |= {role: ours(catalog, role) for role in ("scorer", "selector", "labeler")}
    return "\n".join([HEAD, *objectives(catalog, names), *curation(catalog, names)])


def ours(catalog: Catalog, role: str) -> list[str]:
    """Names of one role that this project's distributions supply."""
    return [name for name in catalog.names(role) if catalog.entry(role, name).distribution in OURS]


def objectives(catalog: Catalog, names: Mapping[str, list[str]]) -> list[str]:
    """Loss against smoother; each cell counts transforms x reweighters that plan."""
    transforms = [[], *([name] for name in names["transform"])]
    inner = list(itertools.product(transforms, names["reweighter"]))
    reasons: dict[str, int] = {}
    rows = []
    for loss in names["objective"]:
        cells = []
        for smoother in names["smoother"]:
            found = [
                refusal(catalog, objective=objective(loss, smoother, *chosen), source={"name": "world"})
                for chosen in inner
            ]
            cells.append(cell(found, reasons))
        rows.append([f"`{loss}`", *cells])
    many = f"none, {', '.join(f'`{name}`' for name in names['transform'])}"
    weighed = ", ".join(f"`{name}`" for name in names["reweighter"])
    return [
        "## The objective",
        "",
        f"Each cell stands for every transform ({many}) with every reweighter",
        f"({weighed}).",
        "",
        *table(["loss \\ smoother", *(f"`{name}`" for name in names["smoother"])], rows),
        *footnotes(reasons),
    ]


def curation(catalog: Catalog, names: Mapping[str, list[str]]) -> list[str]:
    """Scorer against where it stands; each cell counts selectors (x labelers) that plan."""
    reasons: dict[str, int] = {}
    rows = []
    for scorer in names["scorer"]:
        cells = []
        for section, first in (("offline", 1), ("offline", 2), ("generated", 1), ("generated", 2)):
            labelers = names["labeler"] if section == "generated" else [None]
            readers = [s for s in names["selector"] if section == "generated" or reads_scores(catalog, s)]
            found = [
                refusal(catalog, **sections(section, first, scorer, selector, labeler))
                for selector, labeler in itertools.product(readers, labelers)
                if labeler is None or reads_scores(catalog, selector) or labels_by_score(catalog, labeler)
            ]
            cells.append(cell(found, reasons))
        rows.append([f"`{scorer}`", *cells])
    listed = {role: ", ".join(f"`{name}`" for name in names[role]) for role in ("selector", "labeler")}
    return [
        "",
        "## Curation",
        "",
        f"Each cell stands for every selector ({listed['selector']})",
        f"and, for generated pairs, every labeler ({listed['labeler']}) that has a use for",
        "scores, on the world with the objective `dpo`. The iteration is the first in which the section acts.",
        "",
        *table(
            [
                "scorer",
                "offline, iteration 1",
                "offline, iteration 2",
                "generated, iteration 1",
                "generated, iteration 2",
            ],
            rows,
        ),
        *footnotes(reasons),
        "",
    ]


def spec(role: str, name: str) -> dict[str, Any]:
    """A component with the options it cannot do without."""
    return {"name": name, **OPTIONS.get(f"{role}:{name}", {})}


def objective(loss: str, smoother: str, transforms: list[str], reweighter: str) -> dict[str, Any]:
    """An objective section."""
    return {
        "loss": loss,
        "transforms": [spec("transform", name) for name in transforms],
        "smoother": spec("smoother", smoother),
        "reweighter": spec("reweighter", reweighter),
    }


def sections(section: str, first: int, scorer: str, selector: str, labeler: str | None) -> dict[str, Any]:
    """Settings in which `scorer` acts in `section` from iteration `first` of two on."""
    settings: dict[str, Any] = {"loop": {"iterations": 2}, "source": {"name": "world"}}
    if section == "offline":
        chosen = {"scorer": scorer, "selector": spec("selector", selector), "select_from": first}
        return {**settings, "offline": chosen}
    generated = {"scorer": scorer, "selector": spec("selector", selector), "labeler": labeler, "from_iteration": first}
    prompts = "sft" if labeler == "target_first" else "offline"
    return {**settings, "generated": {**generated, "prompts": prompts}}


def reads_scores(catalog: Catalog, selector: str) -> bool:
    """Whether a selector chooses by margin."""
    built = catalog.build("selector", selector, OPTIONS.get(f"selector:{selector}", {}))
    return bool(built.needs.scores)


def labels_by_score(catalog: Catalog, labeler: str) -> bool:
    """Whether a labeler reads scores."""
    return bool(catalog.build("labeler", labeler, {}).needs.scores)


def refusal(catalog: Catalog, **settings: Any) -> str | None:  # noqa: ANN401
    """Why the settings are refused; None where they plan."""
    try:
        make_plan({"name": "composed", **settings}, catalog)
    except ConfigError as error:
        return str(error)
    return None


def cell(found: list[str | None], reasons: dict[str, int]) -> str:
    """How many plan, and the numbers of the reasons why others do not."""
    valid = sum(reason is None for reason in found)
    why = dict.fromkeys(reason for reason in found if reason is not None)
    notes = " ".join(f"[{reasons.setdefault(reason, len(reasons) + 1)}]" for reason in why)
    count = "all" if valid == len(found) else "none" if not valid else str(valid)
    return f"{count} {len(found) if valid == len(found) else f'of {len(found)}'} {notes}".strip()


def footnotes(reasons: Mapping[str, int]) -> list[str]:
    """The reasons, numbered as in the cells."""
    return ["", *(f"{number}. {reason}" for reason, number in reasons.items())] if reasons else []


if __name__ == "__main__":
    main()
