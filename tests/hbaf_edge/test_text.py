"""Transcripts: tags, notes and markup are removed and listed, and possible speech stays."""

import csv
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hbaf_edge import HBAFRuntime, InputError
from hbaf_edge.bundle import DEFAULT
from hbaf_edge.features import Tokeniser, extract_features, text_features
from hbaf_edge.text import MAX_CHARACTERS, clean_text, normalise_name, normalise_text, removal_warning
from training.corpora.records import data_folder

SENTENCE = "The meeting is at ten."
# Notes, tokens and tags: each is removed as a whole text and before words.
NOTES = [
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
NOTES_WITH_TEXT = [
    ("<|startoftranscript|><|en|><|transcribe|><|0.00|> The meeting is at ten.<|4.20|><|endoftext|>", SENTENCE),
    ("[_BEG_] The meeting is at ten.[_TT_123]", SENTENCE),
    ("🎼The meeting is at ten.😡", SENTENCE),
    ("The meeting😊🎼is at ten.😔", SENTENCE),
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
    ("1\n00:00:01,000 --> 00:00:02,500\n" + SENTENCE, SENTENCE),
    ("1\n00:00:01,000 --> 00:00:02,500\n"
        "The meeting\n\n2\n00:00:03,000 --> 00:00:04,000 align:start position:0%\nis at ten.", SENTENCE),
    ("WEBVTT\nKind: captions\nLanguage: en\n\n00:01.000 --> 00:02.500\n" + SENTENCE, SENTENCE),
    ("<v Bob Smith>The meeting is at ten.</v>", SENTENCE),
    ("<i>The meeting is at ten.</i>", SENTENCE),
    ("<font color=\"#fff\">The meeting is at ten.</font>", SENTENCE),
    ("<b>The meeting</b> is at <i>ten</i>.", SENTENCE),
    ("un<i>believ</i>able", "unbelievable"),
    ("hello<br/>there", "hello there"),
    ("<!-- x -->hello", "hello"),
    ("&lt;b&gt;hello&lt;/b&gt;", "hello"),
    ("<speak>hello <break time=\"1s\"/> there</speak>", "hello there"),
    ("<emphasis level='strong'>hello</emphasis>", "hello"),
    ("<say-as interpret-as=\"date\">ten</say-as>", "ten"),
    ("Speaker 1  0:12\n" + SENTENCE, SENTENCE),
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
SPEECH = [
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


@pytest.mark.parametrize("note", NOTES)
def test_notes_are_removed(note):
    assert clean_text(note)[0] == ""
    cleaned, removed = clean_text(f"{note} {SENTENCE}")
    assert cleaned == SENTENCE
    assert removed


@pytest.mark.parametrize(("text", "expected"), NOTES_WITH_TEXT)
def test_what_was_not_spoken_is_removed_and_listed(text, expected):
    cleaned, removed = clean_text(text)
    assert cleaned == expected
    assert removed
    assert clean_text(cleaned) == (cleaned, ())


@pytest.mark.parametrize("text", SPEECH)
def test_possible_speech_is_unchanged(text):
    assert clean_text(text) == (text, ())


def test_removed_parts_are_in_order_and_entities_are_decoded():
    cleaned, removed = clean_text("<|en|>Tom &amp; Jerry&#39;s &quot;cat&quot; [MUSIC] <b>ran</b>")
    assert cleaned == 'Tom & Jerry\'s "cat" ran'
    assert removed == ("<|en|>", "[MUSIC]", "<b>", "</b>")
    assert clean_text("fish &amp; chips") == ("fish & chips", ())


def test_the_warning_is_one_short_line_without_control_characters():
    assert removal_warning(["[A]", "[A]"]) == "removed from the text because it was not spoken: '[A]'"
    warning = removal_warning([f"<{i}{'x' * 500}\x1b[31m\u202e>" for i in range(100)])
    assert len(warning) < 500
    assert warning.endswith(" and 92 more")
    assert warning.isprintable()
    (warning,) = extract_features(
        None, None, "\x1b[2Jhello", Tokeniser((DEFAULT / "tokenizer.json").read_bytes())
    ).warnings
    assert warning == r"removed from the text because it was not spoken: '\x1b[2J'"


@pytest.mark.parametrize("text", [None, "", " \n", "\x00"])
def test_blank_text_stays_empty(text):
    assert clean_text(text) == ("", ())


def test_text_that_is_not_a_str_is_refused():
    with pytest.raises(InputError, match="text is of type bytes"):
        clean_text(b"hello")


@pytest.mark.parametrize("tag", ["<|endoftext|>", "[LAUGHTER]", "(upbeat music)", "*laughs*", "\x1b[31m"])
@pytest.mark.parametrize("overlap", range(1, 15))
def test_a_tag_that_the_length_limit_cuts_is_removed(tag, overlap):
    cleaned, _ = clean_text(("so happy " * 600)[: MAX_CHARACTERS - overlap] + tag + " and more" * 99)
    assert set(cleaned) <= set("so happy and more")


HOSTILE = [
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
HOSTILE += [
    "Speaker 1: ",
    "SPEAKER_00",
    "WEBVTT ",
    "❓WEBVTT ",
    "language English<asr_text>",
    "(angry) Speaker 1: ",
    "&#",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_is_cleaned_in_linear_time(piece):
    closed = "".join({"[": "]", "(": ")", "<": "b>"}.get(c, "") for c in reversed(piece))
    for text in (piece * (MAX_CHARACTERS // len(piece)), piece * (2000 // len(piece)) + closed * 1000):
        start = time.perf_counter()
        clean_text(text)
        assert time.perf_counter() - start < 0.5  # 0.05 s at most on an idle core


PIECES = [
    *"<>|[](){}*/=&;#:-♪😊❓⁇▁1i【】（）「」\n\x1b\x9b \u200b\u0301", "<|en|>", "music", "laughs", "laughter-",
    "Speaker 1:", "SPEAKER_0", "&lt;", "&amp;", "lt;", "gt;", "**", "2J", "%HESITATION", "00:00:01,000", "-->", ">>",
    "WEBVTT", "language English<asr_text>", "hello", "!SIL", "&=",
]  # fmt: skip


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)))
@example("&#60;TATION\n&gt;")
@example("【laughter-x\ny]")
def test_cleaned_text_is_stable_and_cleaning_never_raises(text):
    cleaned, removed = clean_text(text)
    assert clean_text(cleaned) == (cleaned, ())
    assert normalise_text(cleaned) == cleaned
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in cleaned)
    assert len(cleaned) <= max(len(normalise_text(text)), len(text))
    assert len(removal_warning(removed)) < 500


PLAIN_WORDS = "i you laugh music silence the is crying no yes Speaker went home, don't what? 3 well: ok!"


@given(st.lists(st.sampled_from(PLAIN_WORDS.split()), min_size=1).map(" ".join))
def test_plain_sentences_are_unchanged(text):
    assert clean_text(text) == (text, ())


def test_every_method_cleans_texts_unless_clean_text_is_false(runtime):
    clean, noisy = SENTENCE, f"<|en|><|ANGRY|>{SENTENCE} [LAUGHTER]"
    expected = runtime.predict(text=clean)
    single = runtime.predict(text=noisy)
    (batched,) = runtime.predict_batch([{"text": noisy}])
    turn = runtime.begin()
    provisional, finished, revised = turn.provisional(noisy), turn.finish(noisy), turn.revise(noisy)
    warning = "removed from the text because it was not spoken: '<|en|>', '<|ANGRY|>', '[LAUGHTER]'"
    for p in (single, batched, provisional, finished, revised):
        assert p.warnings == (warning,)
        assert p.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    tokeniser = Tokeniser((DEFAULT / "tokenizer.json").read_bytes(), clean_text=False)
    assert text_features(noisy, tokeniser)[1] == ()
    assert len(text_features(noisy, tokeniser)[0]) > len(text_features(clean, tokeniser)[0])
    with HBAFRuntime(threads=1, clean_text=False) as raw:
        assert raw.predict(text=noisy).probabilities != expected.probabilities
        assert raw.predict(text=clean).probabilities == expected.probabilities


def test_text_that_is_empty_after_cleaning_is_refused(runtime):
    with pytest.raises(InputError, match=r"removed from the text.*'\[BLANK_AUDIO\]'.*Give audio"):
        runtime.predict(text="[BLANK_AUDIO]")
    with pytest.raises(InputError, match="clean_text='no'"):
        HBAFRuntime(clean_text="no")


@pytest.mark.data
def test_cleaning_changes_only_four_utterances_of_meld():
    """Of 13,708 utterances only those with stage directions and one *emphasis* change."""
    folder, changed = data_folder() / "meld", []
    for split in ("train", "dev", "test"):
        with open(folder / f"{split}_sent_emo.csv", encoding="utf-8") as file:
            texts = [row["Utterance"] for row in csv.DictReader(file)]
        changed += [clean_text(t)[1] for t in texts if clean_text(t)[0] != normalise_text(t)]
    assert sorted(removed[0][:8] for removed in changed) == ["*", "[Joey an", "[Monica ", "[she pla"]


@pytest.mark.parametrize(
    ("name", "expected"),
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
def test_names_are_normalised(name, expected):
    assert normalise_name(name) == expected


@given(st.text())
def test_a_normalised_name_is_stable_and_has_no_control_characters(name):
    normalised = normalise_name(name)
    assert normalised is None or (normalised == normalised.strip() != "" and normalise_name(normalised) == normalised)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in normalised or "")
