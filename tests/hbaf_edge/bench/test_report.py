"""A report as JSON, Markdown, HTML and pictures; two of them compared; what is told of bad ones."""

import io
import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from hbaf_edge.bench import compare, document, page
from hbaf_edge.bench.document import Report, Section, load, measures_of
from hbaf_edge.bench.series import Series, single
from hbaf_edge.errors import InputError

SCHEMA = json.loads((Path(document.__file__).parent / "schema.json").read_text())
FIGURES = [
    {"kind": "stack", "title": "t", "parts": {"a": 3.0, "b": 0.1}},
    {"kind": "stack", "title": "t", "parts": {"a": 3.0, "b": 1.0, "c": 2.0}, "beside": ["b"]},
    {"kind": "bars", "title": "t", "parts": {"a": 3.0, "b": 3000.0}, "x_title": "ms"},
    {"kind": "lines", "title": "t", "x": [1, 2], "lines": {"p50": [1.0, 2.0]}, "x_title": "x", "y_title": "y"},
    {"kind": "scatter", "title": "t", "x_title": "x", "y_title": "y", "front": ["b", "a"],
     "points": [{"name": n, "x": i + 1, "y": 2 * i, "group": "g", "label": n} for i, n in enumerate("ab")]},
]  # fmt: skip


def report(times, stopped="", better="lower", **settings):
    measured = {"a <turn>": Series.of(times)}
    sections = [
        Section(f"part{'abcd'[i]}", f"Part {i} & more", ("what", "p50"), [("a <turn> | x", 1234.5), ("b", None)],
                "Said of it.", measures_of(measured), "ms", better, figure)
        for i, figure in enumerate([*FIGURES[:4]])
    ]  # fmt: skip
    return Report("A report", {"threads": 2, **settings}, sections=sections, stopped=stopped, warnings=["beware"])


def plain(made):
    """As JSON has it: lists in place of tuples."""
    return json.loads(json.dumps(made.to_json()))


def test_json_is_as_its_schema_says_and_comes_back(tmp_path):
    made = report([1.0, 2.0, 3.0])
    jsonschema.validate(plain(made), SCHEMA)
    page.write(made, tmp_path)
    found = load(tmp_path)
    assert (
        found.to_json() == json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(made.to_json()))
    )
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**plain(made), "other": 1}, SCHEMA)


def test_the_page_stands_alone_and_escapes_what_it_shows(tmp_path):
    path = page.write(report([1.0], stopped="interrupted while x was measured"), tmp_path)
    html = path.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", html), "it must load nothing"
    assert html.count("data:image/png;base64,") == 4
    assert "a &lt;turn&gt;" in html
    assert "<turn>" not in html
    assert "Incomplete: interrupted while x was measured" in html
    assert "not of what a person feels" in html
    for i in range(4):
        assert (tmp_path / f"part{'abcd'[i]}.png").read_bytes()[:4] == b"\x89PNG"
    markdown = (tmp_path / "report.md").read_text()
    assert "| a <turn> \\| x | 1,234 |" in markdown
    assert "> beware" in markdown
    assert not list(tmp_path.glob(".*")), "no half-written file stays"


def test_where_nothing_can_be_written_it_says_so_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"no report can be written to .*file"):
        page.check(tmp_path / "file")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "sections": 3}', '{"format": 1, "sections": [{}]}',
                '{"format": 1, "title": "", "settings": {}, "sections": [{"name": "a", "title": "", "head": [], '
                '"rows": [], "measures": {"x": {}}}]}',
                '{"format": 1, "title": "", "settings": [], "sections": []}',
                '{"format": 1, "title": "", "settings": {}, "sections": [{"name": "a", "title": "", "head": [], '
                '"rows": [], "measures": {"x": {"p50": "1", "low": null, "high": null}}}]}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_report_is_refused(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError, match="is no report of hbaf-edge benchmark"):
        load(tmp_path / "r.json")
    with pytest.raises(InputError, match="is no report"):
        load(tmp_path / "nowhere.json")


def test_only_what_is_more_than_noise_counts_as_changed():
    slow, slower = [10.0 + 0.01 * i for i in range(50)], [13.0 + 0.01 * i for i in range(50)]
    noisy = list(np.random.default_rng(0).normal(10.5, 4, 50).clip(1))
    assert {c.verdict for c in compare.changes(report(slow), report(slower))} == {"worse"}
    assert {c.verdict for c in compare.changes(report(slower), report(slow))} == {"better"}
    assert {c.verdict for c in compare.changes(report(slow, better="higher"), report(slower, better="higher"))} == {
        "better"
    }
    assert {c.verdict for c in compare.changes(report(slow), report(noisy))} == {"within noise"}
    barely = [10.2 + 0.001 * i for i in range(50)]
    assert {c.verdict for c in compare.changes(report(barely), report([x + 0.3 for x in barely]))} == {"within noise"}
    assert {c.verdict for c in compare.changes(report(slow, better=""), report(slower))} == {"changed"}
    assert {c.verdict for c in compare.changes(report(slow[:5]), report(slower[:5]))} == {"not judged"}, "too few"
    alone = report(slow)
    alone.sections[0].measures = {"a <turn>": single(9.0)}
    assert next(compare.changes(alone, report(slower))).verdict == "not judged"


def test_what_the_whole_machine_lost_the_program_did_not():
    def run(turn, arithmetic):
        made = report([turn + 0.01 * i for i in range(50)])
        measures = {compare.REFERENCE: Series.of([arithmetic] * 50).to_json()}
        made.sections.append(Section(compare.REFERENCE, "", (), [], "", measures))
        return made

    assert {c.verdict for c in compare.changes(run(10, 1.0), run(13, 1.3))} == {"within noise"}
    assert {c.verdict for c in compare.changes(run(10, 1.0), run(13, 1.0))} == {"worse"}
    assert {c.verdict for c in compare.changes(run(10, 1.0), run(10, 1.3))} == {"within noise"}
    assert "1.30 times as long" in compare.as_section(run(10, 1.0), run(13, 1.3)).text


def test_a_measure_may_say_what_is_better():
    one, two = report([1.0] * 10), report([2.0] * 10)
    for made in (one, two):
        for section in made.sections:
            section.measures = {n: {**m, "better": "higher"} for n, m in section.measures.items()}
    assert {c.verdict for c in compare.changes(one, two)} == {"better"}


def test_names_are_not_read_as_markup():
    section = Section("s", "[/x]", ("[b]what[/b]",), [("model[int8]",)], "[red]")
    held = io.StringIO()
    document.print_section(Console(file=held, width=60), section)
    for said in ("model[int8]", "[/x]", "[b]what[/b]", "[red]"):
        assert said in held.getvalue()


def test_compare_says_what_else_differs():
    one, two = report([1.0], threads=1), report([1.0], threads=4)
    assert compare.differing(one, two) == ["threads: 1, then 4"]
    section = compare.as_section(one, two, everything=True)
    assert len(section.rows) == 4
    assert not compare.as_section(one, two).rows
    jsonschema.validate(plain(Report("r", {}, sections=[section])), SCHEMA)
