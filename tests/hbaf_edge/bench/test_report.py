"""Reports as JSON, Markdown, HTML and pictures; comparing two reports; rejecting invalid ones."""

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
from hbaf_edge.bench.series import Series, single_value
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
        Section(f"part{'abcd'[i]}", f"Part {i} & more", ("name", "p50"), [("a <turn> | x", 1234.5), ("b", None)],
                "An explanation.", measures_of(measured), "ms", better, figure)
        for i, figure in enumerate([*FIGURES[:4]])
    ]  # fmt: skip
    return Report("A report", {"threads": 2, **settings}, sections=sections, stopped=stopped, warnings=["beware"])


def as_json(a_report):
    """The report with lists instead of tuples."""
    return json.loads(json.dumps(a_report.to_json()))


def test_json_matches_the_schema_and_is_loaded_again(tmp_path):
    original = report([1.0, 2.0, 3.0])
    jsonschema.validate(as_json(original), SCHEMA)
    page.write(original, tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert load(tmp_path).to_json() == stored == as_json(original)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**as_json(original), "other": 1}, SCHEMA)


def test_page_loads_nothing_and_escapes_names(tmp_path):
    path = page.write(report([1.0], stopped="interrupted while x was measured"), tmp_path)
    html = path.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", html), "the page must load nothing"
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
    assert not list(tmp_path.glob(".*")), "no partial file remains"


def test_folder_is_rejected_when_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"no report can be written to .*file"):
        page.check_folder(tmp_path / "file")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "sections": 3}', '{"format": 1, "sections": [{}]}',
                '{"format": 1, "title": "", "settings": {}, "sections": [{"name": "a", "title": "", "head": [], '
                '"rows": [], "measures": {"x": {}}}]}',
                '{"format": 1, "title": "", "settings": [], "sections": []}',
                '{"format": 1, "title": "", "settings": {}, "sections": [{"name": "a", "title": "", "head": [], '
                '"rows": [], "measures": {"x": {"p50": "1", "low": null, "high": null}}}]}', "[" * 100_000],
)  # fmt: skip
def test_invalid_report_is_rejected(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError, match="is not a report of hbaf-edge benchmark"):
        load(tmp_path / "r.json")
    with pytest.raises(InputError, match="is not a report"):
        load(tmp_path / "nowhere.json")


def test_only_changes_larger_than_the_noise_count():
    slow, slower = [10.0 + 0.01 * i for i in range(50)], [13.0 + 0.01 * i for i in range(50)]
    noisy = list(np.random.default_rng(0).normal(10.5, 4, 50).clip(1))
    assert {c.verdict for c in compare.changes(report(slow), report(slower))} == {"worse"}
    assert {c.verdict for c in compare.changes(report(slower), report(slow))} == {"better"}
    assert {c.verdict for c in compare.changes(report(slow, better="higher"), report(slower, better="higher"))} == {
        "better"
    }
    assert {c.verdict for c in compare.changes(report(slow), report(noisy))} == {"within noise"}
    samples = [10.2 + 0.001 * i for i in range(50)]
    assert {c.verdict for c in compare.changes(report(samples), report([x + 0.3 for x in samples]))} == {"within noise"}
    assert {c.verdict for c in compare.changes(report(slow, better=""), report(slower))} == {"changed"}
    assert {c.verdict for c in compare.changes(report(slow[:5]), report(slower[:5]))} == {"no interval"}, "too few"
    single = report(slow)
    single.sections[0].measures = {"a <turn>": single_value(9.0)}
    assert next(compare.changes(single, report(slower))).verdict == "no interval"


def test_slowdown_of_the_machine_is_not_a_change():
    def run(turn, workload):
        result = report([turn + 0.01 * i for i in range(50)])
        measures = {compare.REFERENCE: Series.of([workload] * 50).to_json()}
        result.sections.append(Section(compare.REFERENCE, "", (), [], "", measures))
        return result

    assert {c.verdict for c in compare.changes(run(10, 1.0), run(13, 1.3))} == {"within noise"}
    assert {c.verdict for c in compare.changes(run(10, 1.0), run(13, 1.0))} == {"worse"}
    assert {c.verdict for c in compare.changes(run(10, 1.0), run(10, 1.3))} == {"within noise"}
    assert "1.30 times as long" in compare.changes_section(run(10, 1.0), run(13, 1.3)).text


def test_measure_can_override_which_direction_is_better():
    first, second = report([1.0] * 10), report([2.0] * 10)
    for each in (first, second):
        for section in each.sections:
            section.measures = {n: {**m, "better": "higher"} for n, m in section.measures.items()}
    assert {c.verdict for c in compare.changes(first, second)} == {"better"}


def test_names_are_not_interpreted_as_markup():
    section = Section("s", "[/x]", ("[b]what[/b]",), [("model[int8]",)], "[red]")
    output = io.StringIO()
    document.print_section(Console(file=output, width=60), section)
    for text in ("model[int8]", "[/x]", "[b]what[/b]", "[red]"):
        assert text in output.getvalue()


def test_compare_lists_other_differences():
    first, second = report([1.0], threads=1), report([1.0], threads=4)
    assert compare.other_differences(first, second) == ["threads: 1, then 4"]
    section = compare.changes_section(first, second, everything=True)
    assert len(section.rows) == 4
    assert not compare.changes_section(first, second).rows
    jsonschema.validate(as_json(Report("r", {}, sections=[section])), SCHEMA)
