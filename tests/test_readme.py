"""README's examples run as they stand, with a file, a microphone and a recogniser in place of the reader's."""

import re
from types import SimpleNamespace

import pytest
import soundfile

from hbaf_edge import HBAFRuntime
from tests.conftest import EXAMPLES, ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
CLIP = EXAMPLES / "turn4_anna.flac"


class Microphone:
    """Gives a clip in chunks to whoever asks for samples."""

    def __setattr__(self, name, callback):
        assert name == "on_samples"
        for chunk in soundfile.blocks(CLIP, 960, dtype="float32"):
            callback(chunk)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_runs_as_it_stands(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("hello.wav", *soundfile.read(CLIP))
    recogniser = SimpleNamespace(result=lambda: "I am so glad that you are here!")
    at_hand = {"HBAFRuntime": HBAFRuntime, "microphone": Microphone(), "recogniser": recogniser}
    exec(BLOCKS[number], at_hand)
    assert capsys.readouterr().out.strip()
    assert ("visitor.chat" in BLOCKS[number]) == (tmp_path / "visitor.chat").exists()


def test_there_are_examples():
    assert len(BLOCKS) >= 2
