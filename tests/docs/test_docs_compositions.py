"""The page of combinations is what its script writes."""

from doc_pages import ROOT


def test_the_page_is_what_its_script_writes(script):
    written = script("compositions")["page"]()
    assert written == (ROOT / "docs" / "compositions.md").read_text("utf-8"), "run docs/tables/compositions.py"
