"""`hbaf-edge advise`: what fits a limit on this machine, and what to say when nothing does."""

import pytest
from typer.testing import CliRunner

from hbaf_edge.bench import advise
from hbaf_edge.bench.advise import Limits, lacking, quantity, recorded
from hbaf_edge.cli import app
from hbaf_edge.errors import InputError


def test_what_is_recorded_is_whole():
    stored = recorded()
    names = [c["name"] for c in stored["choices"]]
    assert len(set(names)) == len(names) >= 6
    assert {"float32", "float16", "int8"} <= {c["precision"] for c in stored["choices"]}
    for c in stored["choices"]:
        assert 0 < c["p50_ms"] <= c["p90_ms"]
        assert 0.2 < c["f1"] < 1
        assert 30 < c["megabytes"] < c["peak_mb"]
        assert c["bundle"] in advise.FROM, "a user must be told where it comes from"


@pytest.mark.parametrize("text", ["", "fast", "30 MB", "-3ms", "0ms", "30 milliseconds", "1e3ms"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(InputError, match=r"--latency .* a number with ms or s is expected, such as 30ms"):
        quantity(text, "latency")


def choice(name, f1, ms, mb=200, size=40):
    return {"name": name, "f1": f1, "p50_ms": ms, "p90_ms": ms, "peak_mb": mb, "megabytes": size, "bundle": "built-in",
            "given": "audio and text", "threads": 1, "measured": True}  # fmt: skip


def test_the_quickest_of_the_most_accurate_that_fit_comes_first():
    made = [choice("quick", 0.5, 5), choice("good", 0.7, 20), choice("as good", 0.71, 25),
            choice("best", 0.8, 60, mb=400)]  # fmt: skip
    stored = {"machine": {"cpu": "made up"}, "score": "Of a test."}
    for limits, first in (
        (Limits(), "best"),
        (Limits(latency=30), "good"),
        (Limits(latency=10), "quick"),
        (Limits(memory=300), "good"),
        (Limits(memory=100), None),
    ):
        section, best = advise.advise(limits, made, stored)
        assert (best["name"] if best else None) == first
        assert len(section.rows) == (4 if first is None else sum(row[-1] == "fits" for row in section.rows))
    assert lacking(choice("x", 0.5, 40), Limits(30, 150)) == ["10 ms too slow", "50 MB of memory too much"]


def test_this_machine_is_measured_and_what_it_lacks_cores_for_is_left_out(monkeypatch):
    choices = [choice("built-in, 1", 0.7, 1000), {**choice("other, 1", 0.7, 3000), "bundle": "float32"},
               {**choice("built-in, 2", 0.7, 1000), "threads": 2}]  # fmt: skip
    monkeypatch.setattr(advise, "TURNS", 2)
    found = advise.measured_here(choices, cores=1)
    assert [(c["name"], c["measured"]) for c in found] == [("built-in, 1", True), ("other, 1", False)]
    assert found[0]["p90_ms"] < 1000, "no machine is so slow"
    assert found[1]["p50_ms"] == pytest.approx(3 * found[0]["p50_ms"])


def test_the_command_names_one_or_says_that_none_fits(monkeypatch):
    monkeypatch.setattr(advise, "TURNS", 1)
    done = CliRunner().invoke(app, ["advise", "--latency", "10s", "--memory", "2GB"])
    assert done.exit_code == 0
    assert "HBAFRuntime(" in done.output
    assert "not of what a person feels" in " ".join(done.output.split())
    none = CliRunner().invoke(app, ["advise", "--memory", "1MB"])
    assert none.exit_code == 1
    assert "nothing fits" in none.output
