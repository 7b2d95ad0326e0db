"""Speakers' names are normalised to one spelling in predictions and conversations."""

import pytest

from hbaf_edge import InputError
from hbaf_edge.inputs import MAX_SPEAKER, check_speaker

EMPTY = ["", "  ", "\n\t", "\x00\x1b", "\u200b\u202e"]


@pytest.mark.parametrize("name", [7, 1.5, True, b"anna", ["anna"]])
def test_a_name_that_is_not_a_str_is_refused(name):
    with pytest.raises(InputError, match=f"speaker is of type {type(name).__name__}; a str is expected"):
        check_speaker(name)


def test_the_length_limit_applies_before_normalisation():
    assert check_speaker("x" * MAX_SPEAKER) == "x" * MAX_SPEAKER
    with pytest.raises(InputError, match="a name of 257 characters; 256 are accepted"):
        check_speaker(" " * (MAX_SPEAKER + 1))


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_name_means_an_unknown_speaker(tiny_runtime, name):
    def predict_twice(speaker):
        chat = tiny_runtime.conversation()
        tiny_runtime.predict(text="I hate you!", speaker=speaker, conversation=chat)
        return tiny_runtime.predict(text="What do you mean?", speaker=speaker, conversation=chat)

    empty, unknown, known = predict_twice(name), predict_twice(None), predict_twice("anna")
    assert empty.speaker is None
    assert empty.probabilities == unknown.probabilities != known.probabilities


def test_every_method_normalises_the_name(tiny_runtime):
    chat = tiny_runtime.conversation()
    assert tiny_runtime.predict(text="Hello.", speaker=" Zoe\u0308\n", conversation=chat).speaker == "Zoë"
    (batched,) = tiny_runtime.predict_batch([{"text": "Hello.", "speaker": "Zo\x1b[31më", "conversation": chat}])
    live = tiny_runtime.begin(speaker="\u202eZoë ", conversation=chat)
    assert live.provisional("Hello.").speaker == live.finish("Hello.").speaker == batched.speaker == "Zoë"
    tiny_runtime.observe(text="Hello.", speaker="Zoë\x00", conversation=chat)
    assert {turn.speaker for turn in chat.turns} == {"Zoë"}
    with pytest.raises(InputError, match="speaker is of type int"):
        tiny_runtime.begin(speaker=7)
