"""Transcripts: what recognisers, captions and mark-up add to the words goes and is named; what may be speech stays."""

import csv
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hbaf_edge import HBAFRuntime, InputError
from hbaf_edge.bundle import DEFAULT
from hbaf_edge.features import Tokeniser, extract, from_text
from hbaf_edge.text import MAX_CHARACTERS, clean_text, normalise_name, normalise_text, removal_warning
from training.corpora.records import data_folder

S = "The meeting is at ten."
# Nothing but notes, tokens and tags: each is removed alone and before words.
ALONE = [
    "[BLANK_AUDIO]", "[ Silence ]", "[MUSIC]", "(upbeat music)", "♪ Happy birthday to you ♪", "♪♪", "♪ la la la ♪",
    "*laughs*", "* Musik *", "*sighs deeply*", ">>", ">>>", "[00:00:00.000 --> 00:00:02.500]",
    "[00:00.000 --> 00:02.500]", "[0.00s -> 2.50s]", "(speaking in foreign language)", "(speaking French)",
    "[speaking in foreign language]", "(keyboard clicking)", "(buzzing)", "(door slams)", "(phone rings)",
    "(soft dramatic music)", "(wind blowing)", "(water running)", "(engine revving)", "(dog barking)",
    "(birds chirping)", "(audience laughing)", "(crowd cheering)", "(clears throat)", "(sniffles)", "(laughing)",
    "(Rachel laughs)", "(LAUGHTER)", "[inaudible 00:12:34]", "(inaudible)", "(mumbles)", "(gasping)", "(music fades)",
    "(music playing)", "(eerie music)", "(whooshing)", "[end of audio]", "(crying)", "(crying softly)",
    "<|en|><|ANGRY|><|Speech|><|withitn|>", "<|HAPPY|>", "< | en | >", "😔", "👏😀", "😀", "❓",
    "language English<asr_text>", "&gt;&gt;", "{\\an8}", "SPEAKER_00:", "Speaker 1:", "Speaker A:", "[SPEAKER_00]:",
    "[Speaker 1]", "(Speaker 1)", "spk_0:", "Unknown Speaker:", "(angry)", "[ANGRY]", "<angry>", "*crying*", "【音楽】",
    "「拍手」", "(bell dings)", "(tires screeching)", "(gun firing)", "(footsteps approaching)", "(siren wailing)",
    "(timer beeping)", "(train whistle blowing)", "(indistinct chatter)", "(lip smacking)", "(imitates explosion)",
    "(liquid pouring)", "(shouting in distance)", "(laughs nervously)", "(both laughing)", "(laughter and applause)",
    "(music stops)", "(no audio)", "[no speech]", "(long pause)", "(hip hop music)",
    "(woman singing in foreign language)", "(heavy breathing)", "(phone vibrating)",
]  # fmt: skip
AMONG_WORDS = [
    ("<|startoftranscript|><|en|><|transcribe|><|0.00|> The meeting is at ten.<|4.20|><|endoftext|>", S),
    ("[_BEG_] The meeting is at ten.[_TT_123]", S),
    ("🎼The meeting is at ten.😡", S),
    ("The meeting😊🎼is at ten.😔", S),
    ("[noise] the meeting is at ten", "the meeting is at ten"),
    ("the <unk> meeting <UNK> is at ten", "the meeting is at ten"),
    ("<sil> hello <eps>", "hello"),
    ("[vocalized-noise] hello", "hello"),
    ("{laugh} hello", "hello"),
    ("<SPOKEN_NOISE> hello", "hello"),
    ("!SIL hello !SIL", "hello"),
    ("hello ⁇ there", "hello there"),
    ("▁hello▁there", "hello there"),
    ("<s> hello </s>", "hello"),
    ("%HESITATION well %HESITATION yes", "well yes"),
    ("hello <EOU>", "hello"),
    ("[laughter-yes] I do", "yes I do"),
    ("[laughter] yes", "yes"),
    ("<laugh> yes", "yes"),
    ("&=laughs yes", "yes"),
    ("yes [=! whispers] no", "yes no"),
    ("yes [/] yes", "yes yes"),
    ("yes (.) no", "yes no"),
    ("(( )) yes", "yes"),
    ("<disfmarker> yes", "yes"),
    ("My name is [PII].", "My name is ."),
    ("[Name redacted] called", "called"),
    ("I am [PERSON_NAME_1]", "I am"),
    ("Hi, I am ####!", "Hi, I am !"),
    ("[name_given] called", "called"),
    ("[REDACTED] called", "called"),
    ("[Applause] Thank you!", "Thank you!"),
    ("the<00:00:00.320><c> meeting</c><00:00:00.480><c> is</c> at ten", "the meeting is at ten"),
    ("<c.yellow>hello</c>", "hello"),
    ("1\n00:00:01,000 --> 00:00:02,500\n" + S, S),
    ("1\n00:00:01,000 --> 00:00:02,500\n"
        "The meeting\n\n2\n00:00:03,000 --> 00:00:04,000 align:start position:0%\nis at ten.", S),
    ("WEBVTT\nKind: captions\nLanguage: en\n\n00:01.000 --> 00:02.500\n" + S, S),
    ("<v Bob Smith>The meeting is at ten.</v>", S),
    ("<i>The meeting is at ten.</i>", S),
    ("<font color=\"#fff\">The meeting is at ten.</font>", S),
    ("<b>The meeting</b> is at <i>ten</i>.", S),
    ("un<i>believ</i>able", "unbelievable"),
    ("hello<br/>there", "hello there"),
    ("<!-- x -->hello", "hello"),
    ("&lt;b&gt;hello&lt;/b&gt;", "hello"),
    ("<speak>hello <break time=\"1s\"/> there</speak>", "hello there"),
    ("<emphasis level='strong'>hello</emphasis>", "hello"),
    ("<say-as interpret-as=\"date\">ten</say-as>", "ten"),
    ("Speaker 1  0:12\n" + S, S),
    ("Speaker 1: hi\nSpeaker 2: hello", "hi hello"),
    ("\x1b[31mhello\x1b[0m", "hello"),
    ("\x1b[2J\x1b]0;title\x07 hello", "hello"),
    ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
    ("\x9b31mhello", "hello"),
    ("【笑】hello", "hello"),
    ("（笑）hello", "hello"),
    ("［MUSIC］ hello", "hello"),
    ("[[LAUGHTER]] hello", "hello"),
    ("[crowd (cheering)] hello", "hello"),
    ("[LAUGHTER [MUSIC]] hello", "hello"),
    ("(upbeat <i>music</i>) hello", "hello"),
    ("[] hello ()", "hello"),
    ("[Joey and Ross make impressed faces] Then raspberries", "Then raspberries"),
    ("Oh Ross, you're so great. [she playfully rubs his head and gets up]", "Oh Ross, you're so great."),
    ("[sic] hello", "hello"),
    ("*really* good", "really good"),
    ("**really** good", "really good"),
    ("*I love you*", "I love you"),
]  # fmt: skip
KEPT = [
    "I (for one) love it", "(which is great)", "(555) 123-4567", "f(x) is a function", "a < b and b > c", "I <3 you",
    "2*3*4", "2 * 3 * 4", "What the **** is that?", "f*** you, you ***hole", "Well: I am going.", "Note: it is ten.",
    "He is 5'11\" & she's 6'", "AT&T and Q&A", "rock & roll", "[I know] what you mean", "[yeah] okay",
    "a[0] is the first", "th[is] one", "[He] said so", "(speaking of which) hello", "(music is my life)",
    "(I am crying)", "(I'M CRYING)", "for (crying out loud)", "The book (his best) is out", "[unclosed bracket",
    "closed only]", "(((", "]]]>>", "hmm... well", "two (ring)", "hello ;)", "hello :( bad :)", "(really) good",
    "(actually) yes", "<I want> that", "if x <y and z> w", "5* hotel", "it's 3:30 (10:30 there)", "I scored (2-1)",
    "(a) yes (b) no", "50% > 40%", "I <3 him -> her", "I love 🦄 you", "he said \"yes\"", "{F uh} yes", "{x}",
    "100 --> 200", "see you @ 5", "C# and C++", "a_b_c", "it is ~10", "«yes»", "The noise was awful.",
    "She laughs at me.", "Speaker: he is loud", "the next speaker is Bob: hello", "Silence, please!",
]  # fmt: skip


@pytest.mark.parametrize("note", ALONE)
def test_notes_are_no_text(note):
    assert clean_text(note)[0] == ""
    found, removed = clean_text(f"{note} {S}")
    assert found == S
    assert removed


@pytest.mark.parametrize(("text", "words"), AMONG_WORDS)
def test_what_nobody_said_is_removed_and_named(text, words):
    found, removed = clean_text(text)
    assert found == words
    assert removed
    assert clean_text(found) == (found, ())


@pytest.mark.parametrize("text", KEPT)
def test_what_may_be_speech_stays(text):
    assert clean_text(text) == (text, ())


def test_removed_in_order_and_decoded_entities_are_words():
    found, removed = clean_text("<|en|>Tom &amp; Jerry&#39;s &quot;cat&quot; [MUSIC] <b>ran</b>")
    assert found == 'Tom & Jerry\'s "cat" ran'
    assert removed == ("<|en|>", "[MUSIC]", "<b>", "</b>")
    assert clean_text("fish &amp; chips") == ("fish & chips", ())


def test_the_warning_is_one_bounded_line_without_controls():
    assert removal_warning(["[A]", "[A]"]) == "removed from the text, as nobody said it: '[A]'"
    many = removal_warning([f"<{i}{'x' * 500}\x1b[31m\u202e>" for i in range(100)])
    assert len(many) < 500
    assert many.endswith(" and 92 more")
    assert many.isprintable()
    (warning,) = extract(None, None, "\x1b[2Jhello", Tokeniser((DEFAULT / "tokenizer.json").read_bytes())).warnings
    assert warning == r"removed from the text, as nobody said it: '\x1b[2J'"


@pytest.mark.parametrize("text", [None, "", " \n", "\x00"])
def test_no_text(text):
    assert clean_text(text) == ("", ())


def test_only_a_str_is_text():
    with pytest.raises(InputError, match="text is of type bytes"):
        clean_text(b"hello")


@pytest.mark.parametrize("tag", ["<|endoftext|>", "[LAUGHTER]", "(upbeat music)", "*laughs*", "\x1b[31m"])
@pytest.mark.parametrize("place", range(1, 15))
def test_a_tag_that_the_cut_halves_goes_too(tag, place):
    found, _ = clean_text(("so happy " * 600)[: MAX_CHARACTERS - place] + tag + " and more" * 99)
    assert set(found) <= set("so happy and more")


HARD = [
    "[(",
    "[",
    "(laughs",
    "*a",
    "<a ",
    "<",
    "&amp;",
    "amp;",
    "\x1b",
    "\x1b[1",
    "\x1b]",
    "1",
    "00:00:01,000 --> ",
    "♪a",
]
HARD += ["Speaker 1: ", "SPEAKER_00", "WEBVTT ", "❓WEBVTT ", "language English<asr_text>", "(angry) Speaker 1: ", "&#"]


@pytest.mark.parametrize("piece", HARD)
def test_a_hostile_text_takes_no_time(piece):
    closed = "".join({"[": "]", "(": ")", "<": "b>"}.get(c, "") for c in reversed(piece))
    for text in (piece * (MAX_CHARACTERS // len(piece)), piece * (2000 // len(piece)) + closed * 1000):
        begun = time.perf_counter()
        clean_text(text)
        assert time.perf_counter() - begun < 0.5  # 0.05 s at most on an idle core


PIECES = [
    *"<>|[](){}*/=&;#:-♪😊❓⁇▁1i【】（）「」\n\x1b\x9b \u200b\u0301", "<|en|>", "music", "laughs", "laughter-",
    "Speaker 1:", "SPEAKER_0", "&lt;", "&amp;", "lt;", "gt;", "**", "2J", "%HESITATION", "00:00:01,000", "-->", ">>",
    "WEBVTT", "language English<asr_text>", "hello", "!SIL", "&=",
]  # fmt: skip


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)))
@example("&#60;TATION\n&gt;")
@example("【laughter-x\ny]")
def test_cleaning_is_stable_and_never_raises(text):
    found, removed = clean_text(text)
    assert clean_text(found) == (found, ())
    assert normalise_text(found) == found
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in found)
    assert len(found) <= max(len(normalise_text(text)), len(text))
    assert len(removal_warning(removed)) < 500


PLAIN = "i you laugh music silence the is crying no yes Speaker went home, don't what? 3 well: ok!"


@given(st.lists(st.sampled_from(PLAIN.split()), min_size=1).map(" ".join))
def test_plain_sentences_are_unchanged(text):
    assert clean_text(text) == (text, ())


def test_every_way_in_cleans_and_can_be_told_not_to(runtime):
    said, noisy = S, f"<|en|><|ANGRY|>{S} [LAUGHTER]"
    plain = runtime.predict(text=said)
    one = runtime.predict(text=noisy)
    (many,) = runtime.predict_batch([{"text": noisy}])
    turn = runtime.begin()
    early, last, late = turn.provisional(noisy), turn.finish(noisy), turn.revise(noisy)
    warning = "removed from the text, as nobody said it: '<|en|>', '<|ANGRY|>', '[LAUGHTER]'"
    for p in (one, many, early, last, late):
        assert p.warnings == (warning,)
        assert p.probabilities == pytest.approx(plain.probabilities, abs=1e-6)
    tokeniser = Tokeniser((DEFAULT / "tokenizer.json").read_bytes(), clean_text=False)
    assert from_text(noisy, tokeniser)[1] == ()
    assert len(from_text(noisy, tokeniser)[0]) > len(from_text(said, tokeniser)[0])
    with HBAFRuntime(threads=1, clean_text=False) as raw:
        assert raw.predict(text=noisy).probabilities != plain.probabilities
        assert raw.predict(text=said).probabilities == plain.probabilities


def test_what_is_left_empty_is_no_text(runtime):
    with pytest.raises(InputError, match=r"removed from the text.*'\[BLANK_AUDIO\]'.*Give audio"):
        runtime.predict(text="[BLANK_AUDIO]")
    with pytest.raises(InputError, match="clean_text='no'"):
        HBAFRuntime(clean_text="no")


@pytest.mark.data
def test_corpora_keep_their_words():
    """Of MELD's 13,708 utterances four change, all for the better: stage directions and one *emphasis*."""
    folder, changed = data_folder() / "meld", []
    for split in ("train", "dev", "test"):
        with open(folder / f"{split}_sent_emo.csv", encoding="utf-8") as file:
            texts = [row["Utterance"] for row in csv.DictReader(file)]
        changed += [clean_text(t)[1] for t in texts if clean_text(t)[0] != normalise_text(t)]
    assert sorted(removed[0][:8] for removed in changed) == ["*", "[Joey an", "[Monica ", "[she pla"]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("anna", "anna"),
        ("  Anna \t Maria\n", "Anna Maria"),
        ("Cafe\u0301", "Café"),
        ("a\x1b[31mx", "ax"),
        ("\x1b]0;title\x07bob", "bob"),
        ("an\u200bna\x00", "anna"),
        ("\u202ebob", "bob"),
        ("", None),
        (" \n\t", None),
        ("\x00\x1b\u200f", None),
    ],
)
def test_names(name, kept):
    assert normalise_name(name) == kept


@given(st.text())
def test_a_name_is_stable_and_steers_no_terminal(name):
    kept = normalise_name(name)
    assert kept is None or (kept == kept.strip() != "" and normalise_name(kept) == kept)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in kept or "")
