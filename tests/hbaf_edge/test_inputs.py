"""Speakers' names as callers give them: one spelling in the conversation, in the estimate and from file."""

import pytest

from hbaf_edge import InputError
from hbaf_edge.inputs import MAX_SPEAKER, check_speaker

EMPTY = ["", "  ", "\n\t", "\x00\x1b", "\u200b\u202e"]


@pytest.mark.parametrize("name", [7, 1.5, True, b"anna", ["anna"]])
def test_only_a_str_is_a_name(name):
    with pytest.raises(InputError, match=f"speaker is of type {type(name).__name__}; a str is expected"):
        check_speaker(name)


def test_the_length_is_of_what_came():
    assert check_speaker("x" * MAX_SPEAKER) == "x" * MAX_SPEAKER
    with pytest.raises(InputError, match="a name of 257 characters; 256 are accepted"):
        check_speaker(" " * (MAX_SPEAKER + 1))


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_name_is_unknown(tiny_runtime, name):
    def second(speaker):
        chat = tiny_runtime.conversation()
        tiny_runtime.predict(text="I hate you!", speaker=speaker, conversation=chat)
        return tiny_runtime.predict(text="What do you mean?", speaker=speaker, conversation=chat)

    ours, unknown, known = second(name), second(None), second("anna")
    assert ours.speaker is None
    assert ours.probabilities == unknown.probabilities != known.probabilities


def test_one_spelling_everywhere(tiny_runtime):
    chat = tiny_runtime.conversation()
    assert tiny_runtime.predict(text="Hello.", speaker=" Zoe\u0308\n", conversation=chat).speaker == "Zoë"
    (many,) = tiny_runtime.predict_batch([{"text": "Hello.", "speaker": "Zo\x1b[31më", "conversation": chat}])
    live = tiny_runtime.begin(speaker="\u202eZoë ", conversation=chat)
    assert live.provisional("Hello.").speaker == live.finish("Hello.").speaker == many.speaker == "Zoë"
    tiny_runtime.observe(text="Hello.", speaker="Zoë\x00", conversation=chat)
    assert {turn.speaker for turn in chat.turns} == {"Zoë"}
    with pytest.raises(InputError, match="speaker is of type int"):
        tiny_runtime.begin(speaker=7)
