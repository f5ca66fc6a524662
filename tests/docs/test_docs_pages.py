"""Links resolve, names of things are those in the code, and no page mentions a machine's own paths."""

import ast
import re

import pytest
from doc_pages import ROOT, names, rows, section, text_of, ticked, without_blocks

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MACHINE_PATH = re.compile(r"(?<![\w.\-/~:])/(?:home|root|work|tmp|Users|mnt|opt|usr|var|etc|data)\b")


def sources(folder="src/sera_core"):
    return [file.read_text(encoding="utf-8") for file in sorted((ROOT / folder).rglob("*.py"))]


def anchors(name):
    headings = re.findall(r"^#+ (.+)$", text_of(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", names())
def test_relative_links_resolve(name):
    for link in _LINK.findall(without_blocks(name)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT)), link


@pytest.mark.parametrize("name", names())
def test_no_machine_paths(name):
    assert not _MACHINE_PATH.findall(text_of(name))


@pytest.mark.parametrize("name", names())
def test_lines_end_cleanly(name):
    assert text_of(name).endswith("\n")
    assert not [line for line in text_of(name).splitlines() if line != line.rstrip()]


def test_the_navigation_lists_every_page():
    import yaml

    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"([\w/]+\.md)", str(yaml.safe_load(nav)["nav"])))
    assert listed == {page.removeprefix("docs/") for page in names() if page.startswith("docs/")} | {
        "example_plugin/README.md"
    }


def drop_reasons():
    """Every reason the code counts drops under."""
    candidates = (ROOT / "src/sera_core/candidates.py").read_text(encoding="utf-8")
    text = "\n".join([*sources("src/sera_core/data"), *sources("src/sera_core/builtin"), candidates])
    patterns = (
        r'BadRowError\(\s*"(\w+)"',
        r'dropped\["(\w+)"(?: if [^\]]+ else "(\w+)")?\]',
        r'reasons\[[^\]]+\] = "(\w+)"',
    )
    found = {reason for pattern in patterns for match in re.finditer(pattern, text) for reason in match.groups()}
    tokens = (ROOT / "src/sera_core/data/tokens.py").read_text(encoding="utf-8")
    encoding = (ROOT / "src/sera_core/data/encoding.py").read_text(encoding="utf-8")
    labeler = (ROOT / "src/sera_core/builtin/target_first.py").read_text(encoding="utf-8")
    returned = re.compile(r'(?:return|else) "(\w+)"|"(\w+)" if ')
    targets = (ROOT / "src/sera_core/data/targets.py").read_text(encoding="utf-8")
    for part in (tokens, encoding, labeler, targets):
        found |= {reason for match in returned.finditer(part) for reason in match.groups()}
    curation = (ROOT / "src/sera_core/curation.py").read_text(encoding="utf-8")
    found |= set(re.findall(r'^ABSTAINED = "(\w+)"', curation, re.MULTILINE))
    finish_reasons = {"stop", "length", "given"}
    return found - {None} - finish_reasons


def test_every_drop_reason_is_documented():
    listed = {row[0].strip("`") for row in rows(section("docs/data.md", "Drops"))}
    assert listed == drop_reasons()


def report_fields():
    tree = ast.parse((ROOT / "src/sera_core/iterate.py").read_text(encoding="utf-8"))
    (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "_report"]
    (contract,) = [n.value for n in ast.walk(function) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Tuple)]
    (result,) = [n.value for n in ast.walk(function) if isinstance(n, ast.Return)]
    return {e.value for e in contract.elts} | {
        key.value for key in result.keys if key is not None and hasattr(key, "value")
    }


def test_every_report_field_is_documented():
    listed = {name for row in rows(section("docs/output.md", "`iter_<t>/report.json`")) for name in ticked(row[0])}
    assert report_fields() <= listed
    assert {"iteration", "kl_to_initial", "gold_reward", "probes"} <= report_fields()


def test_every_step_metric_is_documented():
    from sera_core.train.metrics import reserved_names

    listed = {name for row in rows(section("docs/output.md", "`metrics.jsonl`")) for name in ticked(row[0])}
    assert listed == reserved_names() - {"epoch"}  # trackers are given the epoch beside the record


def test_every_manifest_field_is_documented():
    tree = ast.parse((ROOT / "src/sera_core/runner.py").read_text(encoding="utf-8"))
    (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "manifest"]
    (result,) = [n.value for n in ast.walk(function) if isinstance(n, ast.Return)]
    assert {key.value for key in result.keys} <= set(ticked(section("docs/output.md", "`manifest.json`")))


def test_every_selection_field_is_documented():
    text = (ROOT / "src/sera_core/selection.py").read_text(encoding="utf-8")
    body = text[text.index("def _select_offline") :]
    written = set(re.findall(r'"(\w+)":', body)) | set(re.findall(r'found\["(\w+)"\]', body))
    below = text_of("docs/output.md").partition("In `selection`:")[2].partition("\n## ")[0]
    assert {name for row in rows(below) for name in ticked(row[0])} == written


def test_the_world_s_diagnostics_are_documented():
    text = (ROOT / "src/sera_core/world/diagnostics.py").read_text(encoding="utf-8")
    (written,) = re.findall(r"names = \(([^)]+)\)", text)
    listed = {row[0].strip("`") for row in rows(section("docs/world.md", "Diagnostics"))}
    assert listed == set(re.findall(r'"(\w+)"', written))


def test_the_world_offers_its_diagnostics_to_reports():
    from sera_core.protocols import Diagnosing
    from sera_core.world.source import World

    assert isinstance(World(), Diagnosing)


@pytest.mark.parametrize("variable", ["SERA_CACHE", "SERA_PLUGINS"])
def test_environment_variables_are_documented_and_read(variable):
    assert variable in section("docs/configuration.md", "Environment")
    assert any(f'"{variable}"' in text for text in sources())


def test_every_sera_variable_of_the_code_is_documented():
    read = {name for text in sources() for name in re.findall(r'"(SERA_[A-Z_]+)"', text)}
    pages = "".join(text_of(name) for name in names())
    assert {name for name in read if name not in pages} == set()


def messages():
    """Every text in the code, with … where a value is filled in."""
    found = []
    for text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("quoted", re.findall(r"^> `(.+)`$", text_of("docs/troubleshooting.md"), re.MULTILINE))
def test_quoted_messages_exist(quoted):
    wanted = re.escape(quoted).replace("…", ".*")
    assert any(re.search(wanted, message, re.DOTALL) for message in messages())
