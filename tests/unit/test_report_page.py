"""The written report: self-contained, escaped, readable by machines, the same for the same results."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from matplotlib import rc_context
from report_folders import write_ablation, write_run

from sera_core.report import write_report
from sera_core.report.blocks import Chart, Figure, Page, Section, Series, Table, Text
from sera_core.report.draw import STYLE, canvas_of, drawings_of, drawn, inline, standalone
from sera_core.report.html import html
from sera_core.report.markdown import escaped, markdown, paragraph

HOSTILE = "<script>alert('x')</script>&$x^2$|*b*"
VOID = {"meta", "link", "br", "img", "hr", "input"}
LINES = Chart(
    "Title", "lines", "iteration", "win rate (share)", (Series("dpo", (0.0, 1.0), (0.5, 0.7), (0.4, 0.6), (0.6, 0.8)),)
)


def parsed(text):
    return ET.fromstring(text)  # noqa: S314  # what this package wrote


class Reader(HTMLParser):
    """Checks nesting; collects tags, ids, text, every link or source, and the rows of tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.words, self.rows = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in {"href", "src", "xlink:href", "srcset", "action"} or (name == "style" and "url(" in value):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1][-1] += text


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    arms = ("dpo short", "dpo long", "sera short", "sera long")
    folder = write_ablation(
        tmp_path_factory.mktemp("report"),
        arms,
        points={arm: {"step": arm.split()[1]} for arm in arms},
        baseline={"sera short": "dpo short", "sera long": "dpo long"},
        families={"dpo": list(arms[:2]), "sera": list(arms[2:])},
        description=f"About {HOSTILE}",
    )
    page, text = write_report(folder)
    return folder, page.read_text(encoding="utf-8"), text.read_text(encoding="utf-8")


def test_the_html_is_well_formed_and_has_every_section(written):
    reader = Reader(written[1])
    wanted = [
        "warnings",
        "results",
        "frontier",
        "curves",
        "matrix",
        "length",
        "margins",
        "weights",
        "selection",
        "drops",
        "cost",
        "what",
    ]
    assert [name for name in reader.ids if name in wanted] == wanted
    assert len(reader.ids) == len(set(reader.ids))
    linked = {link.removeprefix("#") for link in reader.links if link.startswith("#")}
    assert set(wanted) - {"warnings"} <= linked <= set(reader.ids)


def test_the_html_needs_nothing_from_elsewhere(written):
    reader = Reader(written[1])
    assert "script" not in reader.tags
    assert "img" not in reader.tags
    assert all(link.startswith(("#", "clip-path: url(#")) or link == "data:," for link in reader.links)
    elsewhere = re.findall(r"https?://[^\s\"'<)]+", written[1])
    assert set(elsewhere) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in written[1]


def test_every_table_scrolls_in_its_own_container(written):
    html_text = written[1]
    assert html_text.count("<table>") == len(re.findall(r'<div class="scroll"[^>]*>\s*<table>', html_text)) > 5
    assert 'name="viewport" content="width=device-width' in html_text
    assert "prefers-color-scheme: dark" in html_text


def test_every_figure_names_its_axes_with_units(written):
    figures = re.findall(r"<svg .*?</svg>", written[1], re.DOTALL)
    assert len(figures) > 10
    for figure in figures:
        words = [element.text for element in parsed(figure).iter("{http://www.w3.org/2000/svg}text")]
        named = [word for word in words if word and (("(" in word and word.endswith(")")) or word == "iteration")]
        assert len(named) >= 2, words
        assert "width=" not in figure[: figure.index(">")], "the page sizes it"


def test_hostile_text_stays_text(written):
    _, html_text, markdown_text = written
    assert "<script>" not in html_text
    assert "About &lt;script&gt;alert(" in html_text
    assert "<script>" not in markdown_text
    assert escaped(HOSTILE) in markdown_text


def test_the_markdown_shows_files_that_are_there(written):
    folder, _, text = written
    shown = re.findall(r"\]\((report_files/[\w.-]+)\)", text)
    assert len(shown) == len(set(shown)) > 10
    assert sorted(path.name for path in (folder / "report_files").iterdir()) == sorted(
        name.split("/")[1] for name in shown
    )
    for name in shown:
        assert parsed((folder / name).read_text(encoding="utf-8")).tag == "{http://www.w3.org/2000/svg}svg"


def test_every_row_of_a_markdown_table_is_as_wide_as_its_head(written):
    blocks = re.findall(r"(?:^\|.*\|\n)+", written[2], re.MULTILINE)
    assert len(blocks) > 5
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


HARD = ("a|b <i>x", "&lt;b&gt; &amp;", "1. *β* `偏好` $y$ \"'>", "u\u2028v\x85w\tx\\|", "_=0.1")


def test_hard_names_break_neither_page(tmp_path):
    points = {arm: {"step|": "<1>" if number % 2 else "&2|"} for number, arm in enumerate(HARD)}
    folder = write_ablation(tmp_path, HARD, (0,), baseline=dict.fromkeys(HARD[1:], HARD[0]), points=points)
    page, text = (path.read_text(encoding="utf-8") for path in write_report(folder))
    reader = Reader(page)
    assert not {"i", "b", "script"} & set(reader.tags)
    shown = Reader(MarkdownIt("commonmark").enable("table").render(text))
    assert not {"i", "b", "em", "code", "ol", "script"} & set(shown.tags)
    assert [[" ".join(cell.split()) for cell in row] for row in reader.rows] == shown.rows
    first = [row[0] for row in shown.rows]
    assert all(first.count(" ".join(name.split())) > 3 for name in HARD)
    for svg in (folder / "report_files").iterdir():
        assert parsed(svg.read_text(encoding="utf-8")).tag.endswith("svg")


@pytest.mark.parametrize(
    "text", ["1. one", "12) two", "- three", "+ four", "---", "-", "7.", "# five", "> six", "* 7", "===", "| a |"]
)
def test_a_paragraph_stays_one_whatever_it_begins_with(text):
    page = Page(HOSTILE, text, (text,), (Section("s", "S", (Text(text),)),))
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown(page, "there"))
    assert [token.content for token in tokens if token.type == "text"] == []
    words = ["".join(each.content for each in token.children) for token in tokens if token.type == "inline"]
    assert words == [HOSTILE, text, "Warnings", text, "S", text]
    assert {token.type for token in tokens} == {
        f"{kind}_{end}" for kind in ("heading", "paragraph", "bullet_list", "list_item") for end in ("open", "close")
    } | {"inline"}


def test_a_number_in_a_paragraph_stays_as_it_is_written():
    assert (paragraph("0.5 of it"), paragraph("-0.5 of it"), paragraph("10 runs.")) == (
        "0.5 of it",
        "-0.5 of it",
        "10 runs.",
    )


def test_equal_results_give_equal_files(written, tmp_path):
    folder, html_text, markdown_text = written
    (folder / "report_files" / "old.svg").write_text("left over", encoding="utf-8")
    page, text = write_report(folder)
    assert page.read_text(encoding="utf-8") == html_text
    assert text.read_text(encoding="utf-8") == markdown_text
    assert not (folder / "report_files" / "old.svg").exists()


def test_hostile_names_of_arms_are_drawn_as_they_are(tmp_path):
    series = (Series(HOSTILE, (1.0,), (2.0,)), Series("b", (1.0,), (3.0,)))
    text = drawn(Chart(HOSTILE, "points", "x (m)", "y (s)", series), "n")
    root = parsed(text)
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count(HOSTILE) == 2


def charted(labels, kind="lines", title="t"):
    series = tuple(Series(label, (0.0, 1.0), (1.0, 2.0)) for label in labels)
    return Chart(title, kind, "x (m)", "y (s)", series, (0.0, 1.0, 2.0) if kind == "bars" else ())


def worded(drawing):
    words = parsed(drawing).iter("{http://www.w3.org/2000/svg}text")
    return [element.text for element in words]


@pytest.mark.parametrize("kind", ["lines", "points", "bars"])
def test_names_with_an_underscore_before_them_are_in_the_legend(kind):
    words = worded(drawn(charted(("_=0.1", "_=0.2", "_nolegend_"), kind), "n"))
    assert {"_=0.1", "_=0.2", "_nolegend_"} <= set(words)


@pytest.mark.parametrize("kind", ["lines", "points", "bars"])
@pytest.mark.parametrize(
    "labels",
    [
        ("dpo", "sera-dpo"),
        ("a" * 30, "m" * 30, "b"),
        tuple(
            f"sera-dpo,objective.loss.beta=0.{n},training.learning_rate=0.0002,loop.iterations=3,x=0.5-1a2b3c4{n}"
            for n in range(8)
        ),
        ("W" * 100, "_" * 100, "dpo"),
    ],
    ids=["short", "thirty", "a hundred", "wide"],
)
def test_a_legend_lies_within_its_figure_and_below_the_axes(labels, kind):
    with rc_context(STYLE):
        canvas = canvas_of(charted(labels, kind, title="W" * 100))
        canvas.draw_without_rendering()
        legend = canvas.legends[0].get_window_extent()
        (axes,) = canvas.axes
        label, title = axes.xaxis.label.get_window_extent(), axes.title.get_window_extent()
    assert canvas.bbox.x0 <= legend.x0 < legend.x1 <= canvas.bbox.x1
    assert canvas.bbox.y0 <= legend.y0 < legend.y1 <= label.y0
    assert canvas.bbox.x0 <= title.x0 < title.x1 <= canvas.bbox.x1
    assert axes.bbox.y1 <= title.y0 < title.y1 <= canvas.bbox.y1
    assert axes.bbox.height == pytest.approx(2.5 * canvas.dpi), "the legend takes nothing from the axes"
    shown = [text.get_text().replace("\n", "") for text in canvas.legends[0].get_texts()]
    assert shown == list(labels)


def test_long_names_are_cut_after_commas_and_drawn_whole():
    name = "sera-dpo,objective.loss.beta=0.1,training.learning_rate=0.0002,loop.iterations=3"
    words = worded(drawn(charted((name, "dpo")), "n"))
    parts = [word for word in words if word in name and len(word) > 2 and word != "dpo"]
    assert "".join(parts) == name
    assert len(parts) == 2
    assert parts[0].endswith(",")


def test_characters_as_wide_as_high_have_the_room_they_need():
    words = worded(drawn(charted(("偏" * 80, "dpo")), "n"))
    parts = [word for word in words if set(word) == {"偏"}]
    # 8 points each, and 270 of them in a line.
    assert [len(part) for part in parts] == [33, 33, 14]


def test_what_no_font_and_no_file_can_hold_is_drawn_without_a_warning():
    drawing = drawn(charted(("偏好 🦜", "a\x00b\x1fc\ufffe\nd")), "n")
    assert {"偏好 🦜", "a\ufffdb\ufffdc\ufffd d"} <= set(worded(drawing))


@pytest.mark.parametrize("kind", ["lines", "points", "bars"])
def test_a_chart_is_drawn_the_same_each_time_with_ids_of_its_own(kind):
    series = (Series("a", (0.0, 1.0), (1.0, 2.0)), Series("b", (0.0, 1.0), (2.0, 1.0)))
    chart = Chart("t", kind, "x (m)", "y (s)", series, (0.0, 1.0, 2.0) if kind == "bars" else ())
    drawing = drawn(chart, "one")
    assert drawing == drawn(chart, "one")
    ids = re.findall(r'\bid="([^"]+)"', drawing)
    assert ids
    assert all(name.startswith("one-") for name in ids)
    assert "currentColor" in inline(drawing)
    assert "currentColor" not in standalone(drawing)
    assert "background: white" in standalone(drawing)


def test_cells_are_coloured_by_their_shade():
    table = Table(
        "t", ("", "x", "y"), (("a", "1", "2"), ("b", "3", "4")), shades=((None, 1.0, -0.5), (None, 0.0, None))
    )
    text = html(Page("p", "", (), (Section("s", "S", (table, Text("<b>"))),)), {})
    assert '<td class="plus" style="--depth: 0.45">1</td><td class="minus" style="--depth: 0.23">2</td>' in text
    assert "<td>3</td><td>4</td>" in text
    assert "<p>&lt;b&gt;</p>" in text
    assert "No warning" in text


SILENT = "No warning: no run shows a sign of reward hacking that this report looks for."


@pytest.mark.parametrize(
    ("warnings", "unchecked", "sentence"),
    [
        ((), (), SILENT),
        (
            (),
            ("a sign (no judge)", "another (no gold)"),
            SILENT.replace("this report looks for", "could be looked for")
            + " Not checked: a sign (no judge); another (no gold).",
        ),
        (("Beware.",), ("a sign (no judge)",), "Not checked: a sign (no judge)."),
        (("Beware.",), (), ""),
    ],
)
def test_both_pages_say_what_was_looked_for(warnings, unchecked, sentence):
    page = Page("p", "Lead.", warnings, (), unchecked)
    told = [f"- {warning}" for warning in warnings]
    assert (
        markdown(page, "there")
        == "\n\n".join(["# p", "Lead.", *(["## Warnings", *told] if told else []), *([sentence] if sentence else [])])
        + "\n"
    )
    words = "".join(Reader(html(page, {})).words)
    assert sentence in words
    assert ("No warning" in words, "Not checked" in words) == (not warnings, bool(unchecked))


def test_markdown_by_hand():
    figure = Figure("f", "Caption", (LINES,))
    page = Page(
        "A_b", "Lead.", ("Beware.",), (Section("s", "Part", (Table("T", ("", "x"), (("a|b", "1"),), "Note."), figure)),)
    )
    assert markdown(page, "there") == (
        "# A\\_b\n\nLead.\n\n## Warnings\n\n- Beware.\n\n## Part\n\n**T**\n\n|  | x |\n| --- | --- |\n| a\\|b | 1 |\n\n"
        "Note.\n\nCaption\n\n![Title: win rate (share) by iteration](there/f-1.svg)\n"
    )
    assert list(drawings_of(page)) == ["f-1"]


def test_a_single_run_has_a_report_without_comparisons(tmp_path):
    page, _ = write_report(write_run(tmp_path, iterations=2))
    text = page.read_text(encoding="utf-8")
    assert 'id="matrix"' not in text
    assert 'id="frontier"' not in text
    assert "A run of 2 iterations, seed 0" in text
    assert "One seed: nothing here says what another seed would give." in text
