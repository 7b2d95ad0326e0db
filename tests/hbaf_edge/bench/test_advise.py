"""`hbaf-edge advise`: settings within limits on this machine, and the message if there are none."""

import pytest
from typer.testing import CliRunner

from hbaf_edge.bench import advise
from hbaf_edge.bench.advise import Limits, exceeded_limits, load_choices, parse_quantity
from hbaf_edge.bundle import load_bundle
from hbaf_edge.cli import app
from hbaf_edge.errors import InputError


def test_recorded_choices_are_complete():
    stored = load_choices()
    assert stored["key"] == load_bundle(None).model_key, "run: python -m benchmarks.tradeoff --save"
    assert stored["turns"]["audio and text"] == 0 < stored["turns"]["audio alone"] < stored["turns"]["text alone"]
    assert set(stored["scores"]) == {"audio and text", "text alone", "audio alone"}
    names = [c["name"] for c in stored["choices"]]
    assert len(set(names)) == len(names) >= 6
    assert {"float32", "float16", "int8"} <= {c["precision"] for c in stored["choices"]}
    for c in stored["choices"]:
        assert 0 < c["p50_ms"] <= c["p90_ms"]
        assert c["score"] is None if c["given"] == "audio and text" else 0.2 < c["score"] < 1
        assert 30 < c["megabytes"] < c["peak_mb"]
        assert c["bundle"] in advise.HOW_TO_GET


@pytest.mark.parametrize("text", ["", "fast", "30 MB", "-3ms", "0ms", "30 milliseconds", "1e3ms"])
def test_quantity_is_rejected_without_a_valid_unit(text):
    with pytest.raises(InputError, match=r"--latency .* a number with ms or s is expected, such as 30ms"):
        parse_quantity(text, "latency")


def choice(name, score, ms, mb=200, size=40):
    return {"name": name, "score": score, "p50_ms": ms, "p90_ms": ms, "peak_mb": mb, "megabytes": size,
            "bundle": "built-in", "given": "audio and text", "threads": 1, "measured": True}  # fmt: skip


def test_fastest_of_the_most_accurate_choices_within_the_limits_is_first():
    choices = [choice("quick", 0.5, 5), choice("good", 0.7, 20), choice("as good", 0.71, 25),
               choice("best", 0.8, 60, mb=400)]  # fmt: skip
    stored = {"machine": {"cpu": "test"}, "scores": {"audio and text": "Of a test"}, "turns": {"audio and text": 400}}
    for limits, first in (
        (Limits(), "best"),
        (Limits(latency=30), "good"),
        (Limits(latency=10), "quick"),
        (Limits(memory=300), "good"),
        (Limits(memory=100), None),
    ):
        section, best = advise.advise(limits, choices, stored)
        assert (best["name"] if best else None) == first
        assert len(section.rows) == (4 if first is None else sum(row[-1] == "fits" for row in section.rows))
    assert exceeded_limits(choice("x", 0.5, 40), Limits(30, 150)) == ["10 ms too slow", "50 MB too large"]


def test_without_scores_the_fastest_choice_is_first():
    choices = [choice("slow", None, 20), choice("fast", None, 5)]
    stored = {"machine": {"cpu": "test"}, "scores": {"audio and text": "none"}, "turns": {"audio and text": 0}}
    section, best = advise.advise(Limits(), choices, stored)
    assert best["name"] == "fast"
    assert section.rows[0][1] == "no score"
    assert "The fastest is first" in section.text


def test_built_in_choices_are_measured_and_those_for_more_cores_are_omitted(monkeypatch):
    choices = [choice("built-in, 1", 0.7, 1000), {**choice("other, 1", 0.7, 3000), "bundle": "float32"},
               {**choice("built-in, 2", 0.7, 1000), "threads": 2}]  # fmt: skip
    monkeypatch.setattr(advise, "TURNS", 2)
    local = advise.with_local_latency(choices, cores=1)
    assert [(c["name"], c["measured"]) for c in local] == [("built-in, 1", True), ("other, 1", False)]
    assert local[0]["p90_ms"] < 1000, "a turn cannot take so long"
    assert local[1]["p50_ms"] == pytest.approx(3 * local[0]["p50_ms"])


def test_command_prints_the_best_choice_or_fails_when_none_fits(monkeypatch):
    monkeypatch.setattr(advise, "TURNS", 1)
    result = CliRunner().invoke(app, ["advise", "--latency", "10s", "--memory", "2GB"])
    assert result.exit_code == 0
    assert "HBAFRuntime(" in result.output
    assert "not of what a person feels" in " ".join(result.output.split())
    for inputs in ("text", "audio"):
        chosen = CliRunner().invoke(app, ["advise", "--inputs", inputs]).output
        assert f"{inputs} alone" in chosen
        assert "audio, text=transcript" not in chosen
    none = CliRunner().invoke(app, ["advise", "--memory", "1MB"])
    assert none.exit_code == 1
    assert "no settings fit" in none.output
    assert "the nearest is int8" in none.output
