"""The command line, run as users run it: output for people, JSON for machines, exit code 2 on bad input."""

import json
import subprocess
import sys

import pytest

from hbaf_edge import __version__
from tests.conftest import EXAMPLES, ROOT


def run(*words, text=None):
    command = [sys.executable, "-m", "hbaf_edge", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, input=text)


def test_demo_shows_the_conversation():
    done = run("demo", "--threads", 1)
    assert done.returncode == 0, done.stderr
    for part in ("anna", "bob", "I got the job!", "█", "8 turns", "not of what a person feels", "NON-COMMERCIAL"):
        assert part in done.stdout


def test_predict_of_a_dialogue_file_as_json():
    done = run("predict", EXAMPLES / "conversation.jsonl", "--json", "--threads", 1)
    assert done.returncode == 0, done.stderr
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    assert [t["turn"] for t in turns] == list(range(8))
    assert [t["speaker"] for t in turns[:2]] == ["anna", "bob"]
    assert all(t["modalities"] == ["audio", "text"] for t in turns)
    assert all(abs(sum(t["probabilities"].values()) - 1) < 1e-5 for t in turns)


def test_predict_of_one_utterance_as_table_and_from_standard_input():
    table = run("predict", "--audio", EXAMPLES / "turn2_anna.flac", "--text", "I got the job!", "--speaker", "anna")
    assert table.returncode == 0, table.stderr
    assert "anna" in table.stdout
    assert "audio+text" in table.stdout
    piped = run("predict", "-", "--json", text='{"text": "Fine."}\n')
    assert json.loads(piped.stdout)["modalities"] == ["text"]


def test_info():
    done = run("info")
    assert done.returncode == 0
    for part in ("every SHA-256 right", "NON-COMMERCIAL", "RAVDESS", "MELD", "EU AI Act"):
        assert part in " ".join(done.stdout.split())
    assert json.loads(run("info", "--json").stdout)["format"] == 1


def test_what_people_say_is_not_markup():
    done = run("predict", "--text", "ok [/i] I won [laughs]", "--speaker", "[/]")
    assert done.returncode == 0, done.stderr
    assert "[laughs]" in done.stdout
    assert "[/]" in done.stdout


def test_terminals_without_our_letters():
    import os

    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for words in (("demo",), ("predict", "--text", "Hallo", "--speaker", "Jörg"), ("predict", "--text", "é", "--json")):
        command = [sys.executable, "-m", "hbaf_edge", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, env=env)
        assert done.returncode == 0, done.stderr


def test_dialogue_files_from_other_editors(tmp_path):
    """A byte-order mark, CRLF, and a line separator inside of a string."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "Hello."}\r\n\r\n{"text": "one\xe2\x80\xa8two"}\r\n')
    assert len(run("predict", path, "--json").stdout.splitlines()) == 2
    path.write_text('{"text": "Hello."}\n\n\n{"speaker": "anna"}\n')
    assert "line 4:" in " ".join(run("predict", path).stderr.split())


def test_version():
    done = run("--version")
    assert done.stdout.strip() == f"hbaf-edge {__version__}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("not json\n", "line 1 is not JSON"),
        ('{"text": "hi"}\n[1]\n', "line 2 has list"),
        ('{"txt": "hi"}\n', "['txt']"),
        ('{"text": 5}\n', "text is 5"),
        ('{"audio": "nowhere.wav"}\n', "there is no audio file"),
        ('{"speaker": "anna"}\n', "nothing to judge"),
        ("\n\n", "holds no turns"),
    ],
)
def test_bad_dialogue_files(tmp_path, lines, message):
    path = tmp_path / "dialogue.jsonl"
    path.write_text(lines)
    done = run("predict", path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_other_bad_calls(tmp_path):
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for words, message in [
        (("predict",), "either a dialogue file"),
        (("predict", "nowhere.jsonl"), "there is no dialogue file"),
        (("predict", tmp_path / "binary.jsonl"), "not a UTF-8"),
        (("info", "nowhere"), "there is no bundle"),
        (("predict", "--text", "hi", "--min-confidence", "2"), "min_confidence"),
        (("predict", "--nonsense"), "No such option"),
    ]:
        done = run(*words)
        assert done.returncode == 2, words
        assert message in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
