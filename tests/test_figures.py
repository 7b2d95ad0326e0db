"""Every published figure is what its result file holds, and every result is of the bundle that ships."""

import json
import re
from dataclasses import replace

import jsonschema
import pytest

from benchmarks import publish
from benchmarks.report import WITHOUT_BUNDLE
from export.bundle import card_scores
from export.model_card import model_card
from hbaf_edge.bench.document import load
from hbaf_edge.bundle import DEFAULT, load_bundle
from hbaf_edge.errors import InputError
from tests.conftest import ROOT
from tests.hbaf_edge.bench.test_report import SCHEMA
from training import ledger

RESULTS = sorted({*publish.RESULTS.glob("*.json"), *publish.RESULTS.glob("*/report.json")})
PAGES = [*publish.pages(), ROOT / "CONTRIBUTING.md"]
PAGES = [page for page in PAGES if page.name not in ("changelog.md", "messages.md")]
UNITS = "µs|ms|MB|GB|GiB|KiB|MiB|kB|×|x|%|times|minutes?|min|hours?|seconds?|s|h|W|J|turns/s|dB"
# A number with a unit, a score such as .614, or a share such as "5 of 10".
FIGURE = re.compile(
    rf"(?<![\w.])\d[\d,]*(?:\.\d+)?\s?(?:{UNITS})(?!\w)|(?<![\w.])0?\.\d+(?!\w|\.\d)|(?<![\w.])\d[\d,]* of \d[\d,]*"
)
# Settings, limits and definitions: they are decided, not measured, or follow from arithmetic.
DECIDED = {
    "README.md": {"20 s", "3 s", "95 %"},
    "benchmarks.md": {"50 %", "90 %", "99 %", "95 %", "3 s"},
    "calibration.md": {"99.99 %"},
    "concepts.md": {"0.7", "70 %", "0.4"},
    "data.md": {"30 s"},
    "inputs.md": {"0.1 s", "20 s", "65,536 times"},
    "model.md": {"30 s", "0.1"},
    "results.md": {"95 %"},
    "streaming.md": {"20 ms", "0.1 s"},
    "training.md": {"95 %"},
}


@pytest.fixture(autouse=True)
def _committed_ledger(monkeypatch):
    monkeypatch.delenv("HBAF_LEDGER")


def prose(text):
    """A page without its generated parts, code, links' targets and inline code."""
    text = publish.PART.sub("", text)
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"`[^`\n]*`", "", text)


def test_every_page_and_picture_is_what_its_results_hold():
    out_of_date = [str(path.relative_to(ROOT)) for path in publish.outdated()]
    assert not out_of_date, "run: make figures"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_figure_stands_outside_of_a_generated_part(page):
    figures = {match.strip() for match in FIGURE.findall(prose(page.read_text(encoding="utf-8")))}
    assert figures <= DECIDED.get(page.name, set()), "publish it from a result file (benchmarks/publish.py)"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(publish.RESULTS)))
def test_a_result_names_its_bundle_commit_command_and_machine(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(stored, SCHEMA)
    report = load(path)
    name = path.parent.name if path.name == "report.json" else path.stem
    assert report.bundle == ("" if name in WITHOUT_BUNDLE else load_bundle(None).model_key)
    assert re.fullmatch(r"[0-9a-f]{12}", report.commit), "measure on a committed state"
    assert re.match(r"(OMP_\w+=\w+ )?(python -m |hbaf-edge |make )", report.command)
    assert not re.search(r"(^|\s)/", report.command), "no paths of a machine"
    assert report.machine["cpu"]
    assert not report.stopped
    assert not report.failed


def test_a_figure_edited_by_hand_is_noticed():
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    part = publish.PART.search(text)[0]
    number = re.search(r"\d+\.\d", part)[0]
    edited = text.replace(part, part.replace(number, "0.1", 1))
    assert edited != text
    assert publish.rendered(edited) == text
    outside = text.replace("## Install", "A turn takes 7 ms.\n\n## Install")
    assert set(FIGURE.findall(prose(outside))) - DECIDED["README.md"] == {"7 ms"}


def test_results_of_another_bundle_are_refused(monkeypatch):
    bundle = load_bundle(None)
    other = replace(bundle, manifest={**bundle.manifest, "temperatures": {"audio": 2.0}})
    monkeypatch.setattr(publish, "shipped", lambda: other)
    with pytest.raises(InputError, match=r"is of bundle [0-9a-f]{12}, and [0-9a-f]{12} ships; measure it again: "):
        publish.result("whole")


def test_a_bundle_that_was_never_scored_on_test_is_refused(monkeypatch):
    monkeypatch.setattr(ledger, "entries", list)
    with pytest.raises(InputError, match=r"not in the ledger; run: python -m export\.score"):
        publish.on_test()


def test_an_unknown_part_is_named():
    with pytest.raises(InputError, match="there is no part 'speed'"):
        publish.rendered("<!-- figures: speed -->\n<!-- end of figures -->")


def test_the_card_holds_the_scores_of_the_ledger():
    bundle = load_bundle(None)
    expected = card_scores(bundle, bundle.manifest["scores"])
    assert "meld test, text" in expected["scores"]
    assert "turev" in expected["voices"]
    assert {name: bundle.manifest[name] for name in expected} == expected
    assert all(name in ledger.scores_of(bundle.model_key) or " dev, " in name for name in expected["scores"])
    assert (DEFAULT / "MODEL_CARD.md").read_text(encoding="utf-8") == model_card(bundle.manifest, bundle.labels)


def test_the_ledger_scored_the_bundle_that_ships_on_committed_code():
    key = load_bundle(None).model_key
    for entry in ledger.entries():
        assert entry["sha256"] != key or re.fullmatch(r"[0-9a-f]{12}", entry["commit"])


def test_the_last_row_of_the_parity_chain_is_the_bundle_that_ships():
    manifest = load_bundle(None).manifest
    assert manifest["parity"][-1]["name"] == manifest["precision"]
    assert manifest["parity"][-1]["sha256"] == load_bundle(None).model_key
