"""Detection of texts that are not English, the only language of the text encoder.

It uses no model but three signs: the script of the letters; common English words, compared with common words of other
languages; and the tokeniser's word pieces, because words of an unknown language are split into several pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from hbaf_edge.nonspeech import word_set

# Common in spoken English. A word that also exists in other languages ("me", "no", "was") counts as English, because a
# wrong warning is worse than a missing one.
_ENGLISH = word_set(
    """
    a about actually after again ah all alright also always am an and another any anybody anyone anything are around as
    ask at away baby back bad be because been before being believe best better big boy bye call came can care come
    coming could cool course day dear did do does doing done down each easy else enough even ever every everybody
    everyone everything exactly excuse feel few fine first for forget found friend from fun gave get getting girl give
    go god goes going gone gonna good got gotta great guess guy guys had happen happened happy has hate have having he
    hear hello help her here hers hey hi him his hold home honey hope how huh i idea if in into is it its job just keep
    kidding kind kinda knew know last later leave let like listen little long look looking lot love lovely made mail
    make man many married marry may maybe me mean meet met might mind mine minute miss mom money more morning most
    movie mr mrs much must my myself name need never new next nice night no nobody nope not nothing now of off oh ok
    okay old on once one only or other our out over own party people perfect phone place play please pretty probably
    problem put ready really remember right room said same saw say saying school see seen she should show shut sir
    sleep so some somebody someone something somewhere soon sorry sort sounds start stay still stop stuff such sure
    sweet sweetie take talk talking tell ten than thank thanks that the their them then there these they thing things
    think this those though thought three through time to today together told tomorrow tonight too took true try trying
    two uh um under understand until up us very wait walk wanna want wanted was wanting watch way we week weird welcome
    well went were what whatever when where which while who whole why will wish with without woman women wonderful
    work world would wow wrong yeah year years yep yes yesterday yet you young your yours yourself
    """
)
_CONTRACTION = re.compile(r".'(?:s|t|re|ll|ve|d|m|em|all)$")  # it's, don't, they'll, get'em

# Common in other languages with Latin script: Germanic, Romance, Nordic, Slavic, Turkish, Malay, Bantu and Uralic. The
# list need not be complete, because letters with accents and word pieces are stronger signs.
_FOREIGN = word_set(
    """
    der das und ich ist nicht ein eine einen zu mit auf für sich wir ihr mir mich dich auch noch aber wenn wie sie
    le la les une des du de et que qui je tu il elle nous vous ne pas pour dans avec mais ce cette est
    el los las del por con para como más muy pero una sí mi te lo se
    gli di che perché sono hai della anche questo molto
    os um uma não você ele ela em com muito isso
    het een en van ik jij niet dat zijn op voor met ook maar naar heb wel
    jag jeg det är er inte ikke och og ett et att som på til till med har av vad hvad
    nie to się jest na że jak co ja ale jsem já
    bir bu ve için çok ne ben sen değil ama
    yang dan itu ini tidak dengan untuk dari ke aku saya kamu dia ada
    ang ng mga sa ay ko mo ka ako hindi
    ya wa ni kwa katika yangu
    și nu este că să ei että mutta az és nem hogy van egy ez
    """
)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_ADVICE = "so do not rely on this estimate"
_MIN_WORDS = 3  # one or two words are often a name or an exclamation


def language_warning(text: str, pieces: Iterable[str]) -> str:
    """Return a warning if most of a text is not English.

    Args:
        text: normalised text.
        pieces: its word pieces; a piece that continues a word starts with "##".

    Returns:
        the warning; "" for English, for a text without letters, and for one or two words in Latin script.

    >>> language_warning("Привет!", [])
    'the text is mostly not in Latin script; the text encoder knows only English, so do not rely on this estimate'
    >>> language_warning("Das ist nicht dein Ernst!", ["das", "is", "##t", "nic", "##ht", "dei", "##n", "ern", "##st"])
    'the text seems not to be English, which is all that the text encoder knows, so do not rely on this estimate'
    >>> language_warning("You can't be serious, Siobhan!", ["you", "can", "'", "t", "be", "serious", ",", "si", "##ob"])
    ''
    """
    letters = [c for c in text if c.isalpha()]
    if 2 * sum(map(_is_latin, letters)) < len(letters):
        return "the text is mostly not in Latin script; the text encoder knows only English, " + _ADVICE
    words = _WORD.findall(text.lower().replace("’", "'"))
    if len(words) < _MIN_WORDS:
        return ""
    # Different words only: "ha ha ha" counts as one. Single letters are spelt out or stand for names.
    different = {word for word in words if len(word) > 1}
    english = sum(w in _ENGLISH or _CONTRACTION.search(w) is not None for w in different)
    foreign = sum(w in _FOREIGN and w not in _ENGLISH for w in different) + sum(not w.isascii() for w in different)
    split = len({a for a, b in pairwise(pieces) if b.startswith("##") and not a.startswith("##")})
    if not foreign and len(words) < 5:
        split = 0  # English names, rare words and cries ("Aaaargh!") are split as well
    evidence = foreign + 0.75 * split
    if evidence >= 2 and evidence > 1.5 * english:
        return "the text seems not to be English, which is all that the text encoder knows, " + _ADVICE
    return ""


def _is_latin(letter: str) -> bool:
    """Whether a letter is in Basic Latin to IPA, Latin Extended Additional (Vietnamese), or full-width Latin."""
    return letter < "\u02b0" or "\u1e00" <= letter <= "\u1eff" or "\uff21" <= letter <= "\uff5a"
