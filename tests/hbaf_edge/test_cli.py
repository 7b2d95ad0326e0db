"""The command line: tables, JSON, exit codes, signals and pipes."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hbaf_edge import __version__, cli
from hbaf_edge.bundle import DEFAULT
from hbaf_edge.text import normalise_name
from tests.conftest import EXAMPLES, ROOT

COMMAND = [sys.executable, "-m", "hbaf_edge"]
CLIP = EXAMPLES / "turn2_anna.flac"
CONTROLS = "\x1b[2J\x1b]0;title\x07\x9b31m\x7f\u202e\u2066\u2028\r\n"
KEYS = {"source", "line", "turn", "speaker", "label", "confidence", "probabilities", "modalities", "warnings", "timing",
        "error"}  # fmt: skip


def run(*arguments, **options):
    """Run the command in its own process."""
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, **options)


def start(*arguments, **options):
    """Start the command in its own process."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=ROOT, **{**pipes, **options})


@pytest.fixture
def command(monkeypatch, capsys, runtime):
    """Run the command in this process, by default on the runtime that is already loaded."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments, stdin=b"", is_loaded=True):
        monkeypatch.setattr(sys, "argv", ["hbaf-edge", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with monkeypatch.context() as patch:
            if is_loaded:
                patch.setattr(cli, "HBAFRuntime", lambda *_, **__: contextlib.nullcontext(runtime))
            with pytest.raises(SystemExit) as end:
                cli.main()
        out, err = capsys.readouterr()
        answers = list(map(json.loads, out.splitlines())) if {"predict", "--json"} <= {*arguments} else None
        return SimpleNamespace(code=end.value.code, out=out, err=err, answers=answers)

    yield run
    signal.signal(signal.SIGTERM, handler)


def write_dialogue(path, *turns):
    """Write a dialogue file; strings are written unchanged."""
    path.write_text("".join(f"{t if isinstance(t, str) else json.dumps(t)}\n" for t in turns), encoding="utf-8")
    return path


def test_demo_prints_the_conversation():
    result = run("demo", "--threads", 1)
    assert result.returncode == 0, result.stderr
    for part in ("anna", "bob", "I got the job!", "█", "8 turns", "not of what a person feels", "NON-COMMERCIAL"):
        assert part in result.stdout


def test_predict_prints_a_line_per_turn_of_a_dialogue(command):
    result = run("predict", EXAMPLES / "conversation.jsonl", "--json", "--threads", 1)
    assert (result.returncode, result.stderr) == (0, "")
    turns = [json.loads(line) for line in result.stdout.splitlines()]
    assert [t["turn"] for t in turns] == list(range(8))
    assert [t["line"] for t in turns] == list(range(1, 9))
    assert [t["speaker"] for t in turns[:2]] == ["anna", "bob"]
    assert all(t["modalities"] == ["audio", "text"] and t["error"] is None for t in turns)
    assert all(abs(sum(t["probabilities"].values()) - 1) < 1e-5 for t in turns)
    table = command("predict", EXAMPLES / "conversation.jsonl").out.splitlines()
    assert len(table) == 10  # lines are not wrapped in a pipe
    assert "anna: I got the job! I'm so happy, this is the best day of my life!" in table[3]
    assert "audio+text" in table[3]


def test_predict_of_one_utterance_prints_brackets_unchanged(command):
    result = command("predict", "--audio", CLIP, "--text", "ok [/i] I :joy: won [laughs]", "--speaker", "[/]")
    assert (result.code, result.err) == (0, "")
    assert "[/]: ok [/i] I :joy: won [laughs]" in result.out
    assert "audio+text" in result.out
    named = command("predict", "--audio", CLIP, "--json").answers[0]
    assert (named["source"], named["line"], named["modalities"]) == (str(CLIP), None, ["audio"])
    assert command("predict", "--text", "hi", "--json").answers[0]["source"] is None


def test_dialogue_continues_when_a_turn_is_invalid(command, tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"no audio at all")
    path = write_dialogue(
        tmp_path / "d.jsonl", {"text": "I am so happy for you!", "speaker": "anna"}, {"audio": "missing.wav"},
        {"audio": "noise.wav", "speaker": "bob", "id": 3}, "not json", {"text": 5}, {"txt": "hi", "a": 1}, {},
        {"text": "I am so happy for you!", "speaker": "anna"},
    )  # fmt: skip
    result = command("predict", path, "--json")
    assert result.code == 1
    turns = result.answers
    assert [t["turn"] for t in turns] == [0, *[None] * 6, 1]  # the invalid turns were not committed
    assert [t["line"] for t in turns] == list(range(1, 9))
    assert all(set(t) >= KEYS for t in turns)
    assert all((t["label"] is None) == (t["error"] is not None) for t in turns)
    parts = ["missing.wav", "noise.wav", "not JSON", "text is 5", "'txt', 'a'", "no usable input"]
    for turn, part in zip(turns[1:7], parts):
        assert part in turn["error"]
        assert turn["confidence"] is turn["probabilities"] is turn["timing"] is None
    assert (turns[2]["speaker"], turns[2]["id"]) == ("bob", 3)
    assert len(result.err.splitlines()) == 6
    assert all(f"line {n}: " in line for n, line in enumerate(result.err.splitlines(), 2))

    table = command("predict", path)
    assert table.code == 1
    assert table.out.count("joy") == 2
    assert "error: line 4: not JSON" in table.out.splitlines()[7]
    assert "bob: " in table.out

    strict = command("predict", path, "--strict")
    assert strict.code == 2
    assert strict.out.count("joy") == 1
    assert "missing.wav" in strict.err
    assert len(strict.err.splitlines()) == 1


def test_warning_is_printed_below_its_turn(command, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "silent.wav", [0.0] * 16_000, 16_000)
    path = write_dialogue(tmp_path / "d.jsonl", {"text": "Hi.", "audio": "silent.wav"}, {"text": "Well."})
    lines = command("predict", path).out.splitlines()
    assert "Hi." in lines[1]
    assert "note: audio is digital silence" in lines[2]
    assert "Well." in lines[3]
    silent = command("predict", "--audio", tmp_path / "silent.wav", "--json")
    assert silent.code == 1
    assert silent.answers[0]["label"] is None
    assert silent.answers[0]["error"]


def test_answer_repeats_the_other_fields(command, tmp_path):
    fields = {"id": 7, "start": 0.25, "nested": {"x": [None, True, "é\ud800"]}, "": 1}
    clashing = {"label": "joy", "turn": 12, "line": "x", "source": "mic", "error": "e", "input": {"a": 1}}
    path = write_dialogue(tmp_path / "d.jsonl", {"text": "Hi.", **fields, **clashing}, {"audio": "no.wav", **fields})
    good, bad = command("predict", path, "--json").answers
    for answer in (good, bad):
        assert {key: answer[key] for key in fields} == fields
    assert good["input"] == clashing
    assert (good["turn"], good["line"], good["error"], good["source"]) == (0, 1, None, str(path))
    assert set(good) == KEYS | {*fields, "input"}
    assert set(bad) == KEYS | set(fields)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_is_readable_when_the_encoding_lacks_characters(tmp_path, encoding):
    """JSON stays valid, and tables have escapes."""
    speaker, text = "José 😊\ud800", "é\x85\u2028\x00"
    path = write_dialogue(tmp_path / "d.jsonl", {"text": text, "speaker": speaker, "id": text}, {"audio": "é\n😊.wav"})
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    result = subprocess.run([*COMMAND, "predict", path, "--json"], cwd=ROOT, capture_output=True, env=env)
    assert result.returncode == 1
    first, second = map(json.loads, result.stdout.decode("utf-8").splitlines())
    assert (first["speaker"], first["id"]) == (normalise_name(speaker), text)
    assert "é\\n😊.wav" in second["error"]
    if encoding == "ascii":
        for arguments in (("predict", path), ("demo",)):
            result = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, env=env)
            assert result.returncode == (1 if path in arguments else 0)
            assert b"Traceback" not in result.stderr


def control_characters(text):
    """Control characters except line breaks."""
    return [c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028\ud800")]


def test_control_characters_of_inputs_are_escaped(command, tmp_path):
    name = f"name{CONTROLS}.jsonl"
    path = write_dialogue(
        tmp_path / name, {"text": CONTROLS + "hello", "speaker": CONTROLS}, {"audio": CONTROLS, "speaker": CONTROLS},
        {CONTROLS: 1}, CONTROLS.replace("\n", "").replace("\u2028", ""), {"text": "Hi.", "audio": "silent.wav"},
    )  # fmt: skip
    import soundfile

    soundfile.write(tmp_path / "silent.wav", [0.0] * 16_000, 16_000)
    for arguments in (
        ("predict", path), ("predict", path, path), ("predict", "--text", CONTROLS + "\ud800", "--speaker", CONTROLS),
        ("predict", path, "--json"), ("predict", path, "--strict"), ("predict", CONTROLS),
        ("predict", "--audio", CONTROLS),
        ("predict", f"--{CONTROLS}"), ("predict", "--threads", CONTROLS), (CONTROLS,), ("info", CONTROLS),
    ):  # fmt: skip
        result = command(*arguments)
        assert not control_characters(result.out + result.err), arguments
    assert "hello" in command("predict", path).out


def test_control_characters_of_a_bundle_are_escaped(command, tmp_path, monkeypatch):
    shutil.copytree(DEFAULT, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    manifest["labels"][3] += CONTROLS
    manifest |= {
        "name": CONTROLS,
        "headline": {CONTROLS: CONTROLS},
        "limits": [CONTROLS],
    }
    manifest["data"] = [dict.fromkeys(("name", "licence", "use"), CONTROLS)]
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    for arguments in (("info", tmp_path / "bundle"), ("demo", "--bundle", tmp_path / "bundle")):
        result = command(*arguments, is_loaded=False)
        assert (result.code, result.err) == (0, "")
        assert "joy\\x1b[2J" in result.out
        assert not control_characters(result.out), arguments


def test_info_prints_the_model_card(command):
    result = command("info")
    assert result.code == 0
    for part in ("every SHA-256 is correct", "NON-COMMERCIAL", "RAVDESS", "MELD", "EU AI Act"):
        assert part in result.out
    assert json.loads(command("info", "--json").out)["format"] == 1


def test_version_and_help_are_printed(command):
    assert command("--version").out.strip() == f"hbaf-edge {__version__}"
    for arguments in (("predict", "--help"), ("--help",), ()):
        result = command(*arguments)
        assert result.code == (0 if arguments else 2)
        for part in ("0 every turn was predicted", "1 some turns", "2 the command could not start", "130 interrupted"):
            assert part in " ".join(result.out.split())


def test_invalid_call_prints_one_line_and_exits_with_2(command, tmp_path):
    binary, empty = tmp_path / "binary.jsonl", write_dialogue(tmp_path / "empty.jsonl", "", "")
    binary.write_bytes(b"\xff\xfe\x00")
    long = "a_rather_long_folder_name/" * 8 + "hello world.wav"
    for arguments, message in [
        (("predict",), "either files"),
        (("predict", empty, "--text", "hi"), "either files"),
        (("predict", "nowhere.jsonl"), "there is no dialogue file 'nowhere.jsonl'"),
        (("predict", tmp_path), "is a folder"),
        (("predict", CLIP, long), long),
        (("predict", "--audio", long), long),
        (("predict", "--audio", "two\nlines"), "two\\nlines"),
        (("predict", binary), "not a UTF-8 text file"),
        (("predict", empty), "has no turns"),
        (("predict", "-"), "standard input has no turns"),
        (("info", long), long),
        (("predict", "--nonsense"), "No such option"),
        (("predict", "--threads", "many"), "--threads"),
        (("nonsense",), "No such command"),
    ]:
        result = command(*arguments)
        assert result.code == 2, arguments
        assert result.out == ""
        assert message in result.err
        assert len(result.err.splitlines()) == 1, result.err
        assert result.err.startswith("error: ")


def test_invalid_runtime_options_exit_with_2(command):
    for arguments, message in [
        (("predict", "--text", "hi", "--min-confidence", "2"), "min_confidence"),
        (("predict", "--text", "hi", "--provider", "gpu"), "'cpu', 'ort-cuda', 'ort-tensorrt'"),
        (("demo", "--provider", "gpu"), "'cpu', 'ort-cuda', 'ort-tensorrt'"),
        (("predict", "--audio", CLIP, "--sample-rate", 5), "8,000 to 192,000"),
        (("predict", "--audio", CLIP, "--sample-format", "s16le"), "needs --sample-rate"),
        (("predict", CLIP, "--sample-format", "pcm", "--sample-rate", 16_000), "s16le, "),
    ]:
        result = command(*arguments, is_loaded=False)
        assert (result.code, result.out) == (2, "")
        assert message in result.err
        assert len(result.err.splitlines()) == 1
    assert command("predict", "--text", "hi", "--provider", "auto", is_loaded=False).code == 0


def test_audio_is_read_from_pipes(tmp_path):
    """Standard input as '-' and as a path, a named pipe, a process substitution; with and without a header."""
    import soundfile

    samples, rate = soundfile.read(CLIP, dtype="int16")
    wav, fifo = tmp_path / "a.wav", tmp_path / "fifo"
    soundfile.write(wav, samples, rate)
    os.mkfifo(fifo)
    expected = None
    for name, content, options in [
        ("-", CLIP.read_bytes(), []),
        ("/dev/stdin", wav.read_bytes(), []),
        ("-", samples.tobytes(), ["--sample-rate", str(rate), "--sample-format", "s16le"]),
        (fifo, wav.read_bytes(), []),
    ]:
        process = start("predict", "--audio", name, "--json", *options)
        if name == fifo:
            fifo.write_bytes(content)
            content = None
        out, errors = process.communicate(content, timeout=30)
        assert (process.returncode, errors) == (0, b"")
        answer = json.loads(out)
        assert answer["source"] == str(name)
        expected = expected or answer["probabilities"]
        assert answer["probabilities"] == expected
    line = f"{' '.join(COMMAND)} predict --json --audio <(cat {wav})"
    result = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(result.stdout)["probabilities"] == expected


def test_raw_audio_files_are_read(command, tmp_path):
    """All audio of a call has the same format, also in dialogues. A raw file that begins with '{' is not a dialogue."""
    import soundfile

    samples, rate = soundfile.read(CLIP, dtype="float32")
    (tmp_path / "a.pcm").write_bytes(b"{\0\0\0" + samples.astype("<f4").tobytes())
    path = write_dialogue(tmp_path / "d.jsonl", {"audio": "a.pcm", "text": "I got the job!"}, {"text": "Well."})
    result = command("predict", path, tmp_path / "a.pcm", "--json", "--sample-rate", rate, "--sample-format", "f32le")
    assert (result.code, result.err) == (0, "")
    assert [a["modalities"] for a in result.answers] == [["audio", "text"], ["text"], ["audio"]]


def test_each_file_is_a_separate_conversation(command, tmp_path):
    path = write_dialogue(tmp_path / "d.jsonl", {"text": "Hi."}, {"text": "Well.", "speaker": "bob"})
    empty = write_dialogue(tmp_path / "empty.jsonl")
    (tmp_path / "noise.wav").write_bytes(b"no audio at all")
    files = CLIP, path, CLIP, tmp_path / "noise.wav"
    result = command("predict", *files, "--json", "--speaker", "anna")
    assert result.code == 1
    assert [t["turn"] for t in result.answers] == [0, 0, 1, 0, None]
    assert [t["source"] for t in result.answers] == list(map(str, (CLIP, path, path, CLIP, tmp_path / "noise.wav")))
    assert [t["speaker"] for t in result.answers] == ["anna", "anna", "bob", "anna", "anna"]
    assert [t["turn"] for t in command("predict", *files, "--conversation", "--json").answers] == [0, 1, 2, 3, None]
    result = command("predict", empty, CLIP, "--json")
    assert result.code == 1
    assert len(result.answers) == 1
    assert "empty.jsonl has no turns" in result.err
    table = command("predict", *files).out.splitlines()
    assert str(CLIP) in table[1]
    assert table[2:4] == ["", f"{path}:"]
    assert table[6] == ""
    assert "noise.wav" in table[8]
    assert "cannot be read as audio" in table[9]


def read_answers(process, count):
    """Read so many lines of JSON from its standard output."""
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def test_each_line_of_a_pipe_is_answered_at_once_and_signals_exit_without_output(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for source, number, code in [("-", signal.SIGINT, 130), (tmp_path / "fifo", signal.SIGTERM, 143)]:
        process = start("predict", source, "--json")
        with process.stdin if source == "-" else open(source, "wb") as pipe:
            for n in range(3):
                pipe.write(b'{"text": "I am so happy"}\n' if n != 1 else b"nothing\n")
                pipe.flush()
                assert read_answers(process, 1)[0]["line"] == n + 1
            process.send_signal(number)
            assert process.wait(20) == code
        assert process.stdout.read() == b""
        assert len(process.stderr.read().splitlines()) == 1  # the error about the invalid line


def test_table_rows_are_printed_at_once():
    process = start("predict", "-")
    process.stdin.write(b'{"text": "I am so happy"}\n')
    process.stdin.flush()
    assert process.stdout.readline().startswith(b"turn")
    assert b"joy" in process.stdout.readline()
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize("arguments", [("predict", "-", "--json"), ("predict", "-")])
def test_closed_pipe_exits_without_output(arguments):
    """The reader closes the pipe, as `head -1` does."""
    process = start(*arguments)
    process.stdin.write(b'{"text": "I am so happy"}\n')
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b'{"text": "I am so happy"}\n' * 1000)
        process.stdin.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_prints_one_line():
    with open("/dev/full", "wb") as full:
        process = start("predict", "--text", "hi", "--json", stdout=full)
        _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.splitlines() == [b"error: [Errno 28] No space left on device"]


def read_all(terminal):
    """Read everything written to a terminal until its last writer closes it."""
    parts = []
    with contextlib.suppress(OSError):  # Linux raises it when the terminal is closed
        while part := os.read(terminal, 65536):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


def test_rows_are_wrapped_to_the_terminal(tmp_path):
    pty = pytest.importorskip("pty")
    path = write_dialogue(
        tmp_path / "d.jsonl", *[{"text": "I am so happy for you, and I have been for years."}] * 3, "bad"
    )
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "50"}
    reader, writer = pty.openpty()
    process = start("predict", path, stdout=writer, env=env)
    os.close(writer)
    lines = re.sub("\x1b\\[[0-9;]*m", "", read_all(reader).replace("\r", "")).splitlines()
    assert process.communicate()[1] == b""
    assert process.returncode == 1
    assert sum("joy" in line for line in lines) == 3
    assert all(len(line) <= 50 for line in lines[:-1])
    assert any(line.startswith("      error: line 4: not JSON") for line in lines)
