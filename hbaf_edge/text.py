"""Clean the text of recognisers and caption files, so that only spoken words are left.

`normalise_text` is applied to corpora too. `clean_text` is for transcripts only: recognisers mix tags, notes
("[LAUGHTER]", "(upbeat music)") and markup into their text, and the text encoder reads all of it as speech: "(crying)"
makes a neutral sentence sad. Everything that is removed is listed in `Prediction.warnings`.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable

from hbaf_edge.errors import InputError
from hbaf_edge.nonspeech import SPEECH_WORDS, is_nonspeech_note, is_sound_word, word_set, words_in_note

MAX_CHARACTERS = 4_096  # far more than 64 word pieces; bounds the work on a pasted book
_MAX_TAG = 256  # characters of the longest tag or note
_MAX_LISTED = 8  # different tags in one warning
_MAX_ROUNDS = 8  # levels of nested brackets; recognisers do not nest deeper
_PRONOUNS = [["he"], ["she"], ["it"], ["they"], ["him"], ["them"], ["the"], ["that"], ["this"]]  # "[He] said"
_FEELINGS = word_set(
    "afraid anger angry angrily anxious annoyed calm disgust disgusted excited fear fearful frustrated happy happily "
    "joy joyful nervous neutral sad sadness scared surprise surprised upset"
)
_LAUGHED = re.compile(r"(?i)(laughter|laugh|laughing)-(\S+)")  # Switchboard: a word spoken while laughing
_INLINE = word_set("b i u em strong c font span small mark big")  # may be inside a word; other tags separate words

_TIME = r"(?:\d{1,3}:\d\d(?::\d\d)?(?:[.,]\d{1,3})?|\d{1,5}(?:\.\d{1,3})?s)"
_CLOCK = re.compile(r"(?:0\d:\d\d|\d{1,2}:\d\d:\d\d)(?:[.,]\d{1,3})?")
_SPEAKER = r"(?i:(?:unknown|unidentified)[ _]speaker|(?:speaker|spkr|spk)(?:[ _-]?\d{1,3}|[ _-][a-z]))"
_LABEL = rf"{_SPEAKER}\s?(?::|\(?\d{{1,2}}:\d\d(?::\d\d)?\)?\s?:?)"
# The start of a text: WebVTT's header, Qwen3-ASR's prefix, and SenseVoice's "❓", which means that there is no speech.
_HEAD = rf"\A(?:(?:WEBVTT\b(?:\s(?:Kind|Language):\s?\S+)*|(?i:language[ ]\w{{1,20}}<asr_text>)|❓|{_LABEL})\s?)+"
_EMOJI = "😊😔😡😰🤢😮🎼👏😀😭🤧😷"  # SenseVoice's (webui.py): emotions and sound events that it estimates
_NOTES = "♪♫♬♩"
# No alternative matches beyond the next bracket of its kind, so the search is linear in the length of the text.
_NOISE = re.compile(
    rf"""
      (?P<drop> <\s?\|[^|<>]{{1,80}}\|\s?>                        # <|en|>, <|0.00|>
      | <[!?][^<>]*> | </?\d[\d:.,]*>                             # <!-- -->, <00:00:01.000>
      | (?:\b\d{{1,6}}\s)?\[?{_TIME}\s?-{{1,2}}>\s?{_TIME}\]?     # 1 00:00:01,000 --> 00:00:02,500
        (?:\s(?:align|line|position|region|size|vertical):\S+)*
      | {_HEAD}
      | (?<!\S)>{{2,4}}(?=\s|\w|\Z)                               # ">> " where the speaker changes
      | (?m:^)(?:{_LABEL}\s?)+ | \bSPEAKER_\d{{1,3}}\b:?          # speaker labels of diarisation
      | [{_NOTES}]+(?:[^{_NOTES}\n]*[{_NOTES}]+)?                 # lyrics
      | [{_EMOJI}]+\ufe0f? | ⁇ | ▁                                # SenseVoice; SentencePiece
      | %HESITATION\b | (?<!\S)!SIL\b | &=\w+ | \#{{3,}} )        # IBM, Kaldi, CHAT, a masked name
    | (?P<tag>    </?(?P<inner>[A-Za-z][^<>]*)> )
    | (?P<square> [\[［【〔](?P<note>[^\[\]［］【】〔〕<>]*)[\]］】〕](?:\s?:)? )
    | (?P<round>  [(（](?P<aside>[^()（）\[\]{{}}<>]*)[)）] )
    | (?P<quote>  「(?P<quoted>[^「」<>]*)」 )
    | (?P<curly>  \{{(?P<code>[^{{}}<>]*)\}} )
    | (?P<stars>  (?<![\w*])(?P<star>\*{{1,3}})(?!\*)(?P<starred>[^*\[\]{{}}<>]+)(?P=star)(?![\w*]) )
    """,
    re.VERBOSE,
)
_ENTITY = re.compile(r"&(?:\#\d{1,7}|\#[xX][\da-fA-F]{1,6}|[A-Za-z][A-Za-z\d]{1,31});")
_ESCAPE = re.compile(  # terminal escape sequences: CSI; OSC and similar ones up to BEL or ST; short ones
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*(?:[@-~]|\Z)"
    r"|\x1b(?:[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\]\d{0,4};?|[()*+][0-9A-Z]|[78=>])"
)
_OPEN = re.compile(rf"[<\[({{［【〔（「*&\x1b\x9b{_NOTES}][^>\])}}］】〕）」;]{{0,{_MAX_TAG}}}\Z")
_BRACKETS = str.maketrans(dict.fromkeys("<>[]{}()［］【】〔〕（）「」*&" + _NOTES, " "))


def normalise_text(text: str | None) -> str:
    """Return a text in NFC without escape sequences, control and formatting characters, at most 4,096 characters.

    Each run of white space becomes one space. None becomes "".

    >>> normalise_text("  Cafe\u0301 \\x1b[2J\\x00\\n time ")
    'Café time'
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f"text is of type {type(text).__name__}; a str is expected, or None without text")
    plain = _ESCAPE.sub("", text[:MAX_CHARACTERS])
    if plain.isascii() and plain.isprintable():  # fast path for most texts
        return " ".join(plain.split())
    printable = (" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in plain)
    return " ".join(unicodedata.normalize("NFC", "".join(printable)).split())


def normalise_name(name: str) -> str | None:
    """Normalise a speaker's name, so that equal names compare equal and printing it cannot control a terminal.

    Returns:
        the name in NFC, without escape sequences, control and formatting characters and surrounding white space, with
        single spaces; None if it is empty, which means an unknown speaker.

    >>> normalise_name("  Anna \\x1b[31m  Maria\\n"), normalise_name(" \\t ")
    ('Anna Maria', None)
    """
    printable = (c for c in _ESCAPE.sub("", name) if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return " ".join(unicodedata.normalize("NFC", "".join(printable)).split()) or None


def clean_text(text: str | None) -> tuple[str, tuple[str, ...]]:
    """Normalise a transcript and remove everything that was not spoken.

    It removes recognisers' tokens and tags, notes about sounds in brackets, asterisks or parentheses, song lyrics
    between "♪", markup of captions and speech synthesis, time stamps, speaker labels, and the emoji with which
    SenseVoice writes emotions and sound events (the text encoder knows no emoji). Entities ("&amp;") are decoded. The
    asterisks of *emphasis* are removed and its words stay. Parentheses that a person would read aloud stay, and so
    do masked words ("f***").

    Returns:
        the cleaned text, "" if no words are left; and the removed parts in order.

    >>> clean_text("<|en|><|ANGRY|>The <b>meeting</b> (which is long) is at ten. [LAUGHTER]")
    ('The meeting (which is long) is at ten.', ('<|en|>', '<|ANGRY|>', '<b>', '</b>', '[LAUGHTER]'))
    """
    if text is None or not isinstance(text, str):
        return normalise_text(text), ()
    removed: list[str] = []
    rest = text[:MAX_CHARACTERS]
    if len(text) > MAX_CHARACTERS:  # also remove a tag that the limit cuts in two
        rest = rest[:-_MAX_TAG] + _OPEN.sub("", rest[-_MAX_TAG:])
    rounds, previous = 0, ""
    while rest != previous:  # nested brackets are removed from the innermost to the outermost
        previous, rounds = rest, rounds + 1
        rest = _ENTITY.sub(lambda match: html.unescape(match[0]), rest)
        removed.extend(_ESCAPE.findall(rest))
        rest = _ESCAPE.sub("", rest)
        rest = _NOISE.sub(lambda match: _replacement(match, removed), rest)
        if rounds >= _MAX_ROUNDS:
            rest = rest.translate(_BRACKETS)
        rest = "\n".join(filter(None, map(normalise_text, rest.splitlines())))
        if rest == previous:  # now join lines; a joined line may contain a new label or time stamp: one more round
            rest = rest.replace("\n", " ")
    return rest, tuple(removed)


def removal_warning(removed: Iterable[str]) -> str:
    """Return the warning about the parts that `clean_text` removed: one short line without control characters.

    >>> removal_warning(["<|en|>", "[LAUGHTER]", "<|en|>"])
    "removed from the text because it was not spoken: '<|en|>', '[LAUGHTER]'"
    """
    different = list(dict.fromkeys(removed))
    listed = [repr(tag if len(tag) <= 40 else f"{tag[:39]}…") for tag in different[:_MAX_LISTED]]
    more = f" and {len(different) - _MAX_LISTED} more" if len(different) > _MAX_LISTED else ""
    return f"removed from the text because it was not spoken: {', '.join(listed)}{more}"


def _replacement(match: re.Match[str], removed: list[str]) -> str:
    """Return the replacement of a possible tag: the tag itself if it may be speech."""
    kind, tag = match.lastgroup or "", match[0]
    if kind == "stars" and not is_nonspeech_note(match["starred"]):
        if match["starred"] != match["starred"].strip():
            return tag  # 2 * 3 * 4
        removed.append(match["star"])
        return match["starred"]
    if kind == "square" and (laughed := _LAUGHED.fullmatch(match["note"])):
        removed.append(f"[{laughed[1]}-]")
        return laughed[2]
    if kind in _REMOVABLE and not _REMOVABLE[kind](match):
        return tag
    removed.append(tag)
    before, after = _around(match)
    inline = kind == "tag" and re.split(r"[\s./]", match["inner"], maxsplit=1)[0].lower() in _INLINE
    return "" if inline or not before.strip() or not after.strip(" \n.,!?;:…") else " "


def _around(match: re.Match[str]) -> tuple[str, str]:
    """Return the characters before and after a match; "" at the ends of the text."""
    start, end = match.span()
    return match.string[start - 1 : start] if start else "", match.string[end : end + 1]


def _is_tag(match: re.Match[str]) -> bool:
    """Whether angle brackets are a tag. Not: "x <y and z> w", and phrases marked in CHAT format, "<I want> [/]"."""
    inner = " ".join(match["inner"].rstrip("/ \n").split())
    return (
        " " not in inner
        or "=" in inner
        or match[0].startswith("</")
        or inner.lower().startswith(("v ", "lang "))
        or is_nonspeech_note(inner)
    )


def _is_remark(match: re.Match[str]) -> bool:
    """Whether square brackets are a note. Not: overlapping speech, uncertain words, and parts of words or formulas."""
    words = [word.lower() for word in words_in_note(match["note"])]
    if len(words) > 12 or SPEECH_WORDS.intersection(words) or words in _PRONOUNS:
        return False
    before, after = _around(match)
    return any(map(is_sound_word, words)) or not (before.isalnum() or after.isalnum())  # a[0], th[is]


def _is_aside(match: re.Match[str]) -> bool:
    """Whether a parenthesis is a note: a sound, time, pause or speaker; a feeling only at the start of a line."""
    aside = match["aside"].strip()
    if not aside.strip(".") or _CLOCK.fullmatch(aside) or re.fullmatch(_SPEAKER, aside) or is_nonspeech_note(aside):
        return True
    return aside.lower() in _FEELINGS and _around(match)[0] in ("", "\n")


_REMOVABLE: dict[str, Callable[[re.Match[str]], bool]] = {
    "tag": _is_tag,
    "square": _is_remark,
    "round": _is_aside,
    "quote": lambda match: is_nonspeech_note(match["quoted"]),
    "curly": lambda match: match["code"].startswith("\\") or is_nonspeech_note(match["code"]),
}
