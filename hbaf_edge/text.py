"""What a recogniser or a caption file writes -> the words that somebody said.

`normalise_text` is what corpora go through as well. `clean_text` is for transcripts only: recognisers mix tags, notes
("[LAUGHTER]", "(upbeat music)") and markup into their text, and a text encoder reads all of it as speech: "(crying)"
alone makes a sad turn of a neutral sentence. What is removed is named in `Prediction.warnings`.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable

from hbaf_edge.errors import InputError
from hbaf_edge.notes import SPOKEN, is_note, is_sound, word_set, words_of

MAX_CHARACTERS = 4_096  # far more than 64 word pieces; bounds the work on a pasted book
_MAX_TAG = 256  # characters; no note is longer
_MAX_NAMED = 8  # different tags in one warning
_MAX_ROUNDS = 8  # of brackets in brackets; who nests deeper is not a recogniser
_PRONOUNS = [["he"], ["she"], ["it"], ["they"], ["him"], ["them"], ["the"], ["that"], ["this"]]  # "[He] said"
_FEELINGS = word_set(
    "afraid anger angry angrily anxious annoyed calm disgust disgusted excited fear fearful frustrated happy happily "
    "joy joyful nervous neutral sad sadness scared surprise surprised upset"
)
_LAUGHED = re.compile(r"(?i)(laughter|laugh|laughing)-(\S+)")  # Switchboard: a word that was laughed
_INLINE = word_set("b i u em strong c font span small mark big")  # may stand inside of a word; the others part words

_TIME = r"(?:\d{1,3}:\d\d(?::\d\d)?(?:[.,]\d{1,3})?|\d{1,5}(?:\.\d{1,3})?s)"
_CLOCK = re.compile(r"(?:0\d:\d\d|\d{1,2}:\d\d:\d\d)(?:[.,]\d{1,3})?")
_SPEAKER = r"(?i:(?:unknown|unidentified)[ _]speaker|(?:speaker|spkr|spk)(?:[ _-]?\d{1,3}|[ _-][a-z]))"
_LABEL = rf"{_SPEAKER}\s?(?::|\(?\d{{1,2}}:\d\d(?::\d\d)?\)?\s?:?)"
# What a text begins with, all of it at once: WebVTT's head, Qwen3-ASR's, and SenseVoice's "nothing was said".
_HEAD = rf"\A(?:(?:WEBVTT\b(?:\s(?:Kind|Language):\s?\S+)*|(?i:language[ ]\w{{1,20}}<asr_text>)|❓|{_LABEL})\s?)+"
_EMOJI = "😊😔😡😰🤢😮🎼👏😀😭🤧😷"  # the ones SenseVoice writes (its webui.py): emotions it guessed, sounds it heard
_NOTES = "♪♫♬♩"
# No alternative can run past the next bracket of its kind, so that the search is linear in the length of the text.
_NOISE = re.compile(
    rf"""
      (?P<drop> <\s?\|[^|<>]{{1,80}}\|\s?>                        # <|en|>, <|0.00|>
      | <[!?][^<>]*> | </?\d[\d:.,]*>                             # <!-- -->, <00:00:01.000>
      | (?:\b\d{{1,6}}\s)?\[?{_TIME}\s?-{{1,2}}>\s?{_TIME}\]?     # 1 00:00:01,000 --> 00:00:02,500
        (?:\s(?:align|line|position|region|size|vertical):\S+)*
      | {_HEAD}
      | (?<!\S)>{{2,4}}(?=\s|\w|\Z)                               # ">> " where another one begins to speak
      | (?m:^)(?:{_LABEL}\s?)+ | \bSPEAKER_\d{{1,3}}\b:?          # speakers, as diarisation names them
      | [{_NOTES}]+(?:[^{_NOTES}\n]*[{_NOTES}]+)?                 # lyrics are sung, not said to anybody
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
_ESCAPE = re.compile(  # what terminals obey: CSI, OSC and its relatives up to BEL or ST, and short ones
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*(?:[@-~]|\Z)"
    r"|\x1b(?:[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\]\d{0,4};?|[()*+][0-9A-Z]|[78=>])"
)
_OPEN = re.compile(rf"[<\[({{［【〔（「*&\x1b\x9b{_NOTES}][^>\])}}］】〕）」;]{{0,{_MAX_TAG}}}\Z")
_BRACKETS = str.maketrans(dict.fromkeys("<>[]{}()［］【】〔〕（）「」*&" + _NOTES, " "))


def normalise_text(text: str | None) -> str:
    """NFC; escape sequences, control and formatting characters out; runs of white space to one blank; 4,096 at most.

    >>> normalise_text("  Cafe\u0301 \\x1b[2J\\x00\\n time ")
    'Café time'
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f"text is of type {type(text).__name__}; a str is expected, or None where nothing was said")
    plain = _ESCAPE.sub("", text[:MAX_CHARACTERS])
    if plain.isascii() and plain.isprintable():  # most texts; no character has to be looked at
        return " ".join(plain.split())
    kept = (" " if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in plain)
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


def normalise_name(name: str) -> str | None:
    """A speaker's name as a conversation keeps it: it cannot steer a terminal, and one name is written one way.

    It is NFC, without escape sequences, control and formatting characters, white space trimmed and one blank each; None
    where nothing is left, since an empty name is no person's.

    >>> normalise_name("  Anna \\x1b[31m  Maria\\n"), normalise_name(" \\t ")
    ('Anna Maria', None)
    """
    kept = (c for c in _ESCAPE.sub("", name) if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split()) or None


def clean_text(text: str | None) -> tuple[str, tuple[str, ...]]:
    """`normalise_text` for a transcript: what nobody said is taken out.

    Out go recognisers' tokens and tags, notes of sounds in brackets, asterisks or parentheses, song lyrics between
    "♪", markup of captions and speech synthesis, time stamps, speakers' labels, and the emoji with which SenseVoice
    writes what it guesses of emotions and sounds (the text encoder knows no emoji). Entities ("&amp;") are decoded,
    and the asterisks of *emphasis* go while its words stay. Parentheses that a person would read aloud stay, and so
    does a masked word ("f***"), which somebody did say.

    Returns:
        the words, "" where none are left; and what was removed, in order.

    >>> clean_text("<|en|><|ANGRY|>The <b>meeting</b> (which is long) is at ten. [LAUGHTER]")
    ('The meeting (which is long) is at ten.', ('<|en|>', '<|ANGRY|>', '<b>', '</b>', '[LAUGHTER]'))
    """
    if text is None or not isinstance(text, str):
        return normalise_text(text), ()
    removed: list[str] = []
    rest = text[:MAX_CHARACTERS]
    if len(text) > MAX_CHARACTERS:  # a tag that is cut in two would not be known as one
        rest = rest[:-_MAX_TAG] + _OPEN.sub("", rest[-_MAX_TAG:])
    rounds, before = 0, ""
    while rest != before:  # brackets inside of brackets, from the innermost on
        before, rounds = rest, rounds + 1
        rest = _ENTITY.sub(lambda match: html.unescape(match[0]), rest)
        removed.extend(_ESCAPE.findall(rest))
        rest = _ESCAPE.sub("", rest)
        rest = _NOISE.sub(lambda match: _what_stays(match, removed), rest)
        if rounds >= _MAX_ROUNDS:
            rest = rest.translate(_BRACKETS)
        rest = "\n".join(filter(None, map(normalise_text, rest.splitlines())))
        if rest == before:  # lines mattered until here; joined, they may name a speaker or a time
            rest = rest.replace("\n", " ")
    return rest, tuple(removed)


def removal_warning(removed: Iterable[str]) -> str:
    """What to tell the caller of what `clean_text` removed: one line of bounded length, without control characters.

    >>> removal_warning(["<|en|>", "[LAUGHTER]", "<|en|>"])
    "removed from the text, as nobody said it: '<|en|>', '[LAUGHTER]'"
    """
    different = list(dict.fromkeys(removed))
    named = [repr(tag if len(tag) <= 40 else f"{tag[:39]}…") for tag in different[:_MAX_NAMED]]
    more = f" and {len(different) - _MAX_NAMED} more" if len(different) > _MAX_NAMED else ""
    return f"removed from the text, as nobody said it: {', '.join(named)}{more}"


def _what_stays(match: re.Match[str], removed: list[str]) -> str:
    """What a possible tag is replaced with: itself where it may be speech."""
    kind, whole = match.lastgroup or "", match[0]
    if kind == "stars" and not is_note(match["starred"]):
        if match["starred"] != match["starred"].strip():
            return whole  # 2 * 3 * 4
        removed.append(match["star"])
        return match["starred"]
    if kind == "square" and (laughed := _LAUGHED.fullmatch(match["note"])):
        removed.append(f"[{laughed[1]}-]")
        return laughed[2]
    if kind in _REMOVABLE and not _REMOVABLE[kind](match):
        return whole
    removed.append(whole)
    before, after = _around(match)
    inline = kind == "tag" and re.split(r"[\s./]", match["inner"], maxsplit=1)[0].lower() in _INLINE
    return "" if inline or not before.strip() or not after.strip(" \n.,!?;:…") else " "


def _around(match: re.Match[str]) -> tuple[str, str]:
    """The characters before and after it; "" at the ends."""
    start, end = match.span()
    return match.string[start - 1 : start] if start else "", match.string[end : end + 1]


def _is_tag(match: re.Match[str]) -> bool:
    """Markup or a recogniser's token; "x <y and z> w" and a phrase that CHAT marks ("<I want> [/]") are not."""
    inner = " ".join(match["inner"].rstrip("/ \n").split())
    return (
        " " not in inner
        or "=" in inner
        or match[0].startswith("</")
        or inner.lower().startswith(("v ", "lang "))
        or is_note(inner)
    )


def _is_remark(match: re.Match[str]) -> bool:
    """Square brackets hold what is not said, unless they show speech that overlaps, a guess, or belong to a formula."""
    words = [word.lower() for word in words_of(match["note"])]
    if len(words) > 12 or SPOKEN.intersection(words) or words in _PRONOUNS:
        return False
    before, after = _around(match)
    return any(map(is_sound, words)) or not (before.isalnum() or after.isalnum())  # a[0], th[is]


def _is_aside(match: re.Match[str]) -> bool:
    """A parenthesis that is a note: of a sound, a time, a pause, a speaker; of a feeling where it heads a line."""
    aside = match["aside"].strip()
    if not aside.strip(".") or _CLOCK.fullmatch(aside) or re.fullmatch(_SPEAKER, aside) or is_note(aside):
        return True
    return aside.lower() in _FEELINGS and _around(match)[0] in ("", "\n")


_REMOVABLE: dict[str, Callable[[re.Match[str]], bool]] = {
    "tag": _is_tag,
    "square": _is_remark,
    "round": _is_aside,
    "quote": lambda match: is_note(match["quoted"]),
    "curly": lambda match: match["code"].startswith("\\") or is_note(match["code"]),
}
