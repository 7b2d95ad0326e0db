"""Whether a text is English, the only language that the text encoder knows.

Three signs, none of which needs a model of its own: the letters' script; common words of English, which make up most
of what people say, against common words of other languages; and the encoder's own word pieces, since it has to cut up
the words of a language that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from hbaf_edge.notes import word_set

# Common in spoken English. A word that other languages write too ("me", "no", "was") speaks for English: a warning
# that is wrong is worse than one that is missing.
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

# Common in other languages of Latin script, from the Germanic, Romance, Nordic, Slavic, Turkish, Malay, Bantu and
# Uralic ones; not complete, since letters with accents and word pieces say more.
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
_SHORTEST = 3  # words; names and exclamations of one or two belong to no language


def not_english(text: str, pieces: Iterable[str]) -> str:
    """What to warn of where a text is mostly not English.

    Args:
        text: normalised.
        pieces: its word pieces; those that go on with a word begin with "##".

    Returns:
        the warning; "" for English, for what has no letters, and for one or two words of Latin script.

    >>> not_english("Привет!", [])
    'the text is mostly not in Latin script; the text encoder knows only English, so do not rely on this estimate'
    >>> not_english("Das ist nicht dein Ernst!", ["das", "is", "##t", "nic", "##ht", "dei", "##n", "ern", "##st", "!"])
    'the text seems not to be English, which is all that the text encoder knows, so do not rely on this estimate'
    >>> not_english("You can't be serious, Siobhan!", ["you", "can", "'", "t", "be", "serious", ",", "si", "##ob"])
    ''
    """
    letters = [c for c in text if c.isalpha()]
    if 2 * sum(map(_is_latin, letters)) < len(letters):
        return "the text is mostly not in Latin script; the text encoder knows only English, " + _ADVICE
    found = _WORD.findall(text.lower().replace("’", "'"))
    if len(found) < _SHORTEST:
        return ""
    # Different ones only: "ha ha ha" is one word. Single letters are spelt out or stand for names.
    words = {w for w in found if len(w) > 1}
    english = sum(w in _ENGLISH or _CONTRACTION.search(w) is not None for w in words)
    foreign = sum(w in _FOREIGN and w not in _ENGLISH for w in words) + sum(not w.isascii() for w in words)
    cut = len({a for a, b in pairwise(pieces) if b.startswith("##") and not a.startswith("##")})
    if not foreign and len(found) < 5:
        cut = 0  # English names, rare words and cries ("Aaaargh!") are cut up as well
    evidence = foreign + 0.75 * cut
    if evidence >= 2 and evidence > 1.5 * english:
        return "the text seems not to be English, which is all that the text encoder knows, " + _ADVICE
    return ""


def _is_latin(letter: str) -> bool:
    """Basic Latin to IPA, Latin Extended Additional (Vietnamese), and full-width letters."""
    return letter < "\u02b0" or "\u1e00" <= letter <= "\u1eff" or "\uff21" <= letter <= "\uff5a"
