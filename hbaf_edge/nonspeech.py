"""Recognise notes of non-speech in transcripts: "(upbeat music)", "[door slams]", "*laughs*".

The word lists follow the output of Whisper, captions and transcription guides. Endings are removed before the look-up,
so a verb is listed once. A verb makes a note only with "-s" or "-ing": "(rings)" is a note, "(ring)" may be speech.
"""

from __future__ import annotations

import re


def word_set(words: str) -> frozenset[str]:
    """Split a string into a set of words; a string is easier to read and edit than a list."""
    return frozenset(words.split())


# In square brackets these words mark overlapping or guessed speech, which is not a note.
SPEECH_WORDS = word_set(
    """
    i i'm i'll i've i'd me my you you're your we we're our us yes yeah yep no nope not don't okay ok oh well hi hello
    hey please thanks thank sorry what why how right so uh um mhm huh
    """
)
_SOUNDS = word_set(
    """
    ambience applause audio babble beep bleep breath burp cackle chatter chime chirp chuckle clack clank clap clatter
    click cough creak crosstalk dialtone explosion fanfare footstep foreign gasp giggle groan growl grunt guffaw gunshot
    hesitation hiccup hiss inaudible incomprehensible indecipherable indiscernible indistinct instrumental jingle
    laugh laughter lipsmack melody moan murmur music noise nonspeech pause ringtone rustle sarcastically scoff shriek
    sigh silence sneeze snicker sniff sniffle snore snort sob sound squeak squeal static thud thump thunder typing
    unintelligible vocalization vocalize vocalized wail whimper whir whistle whoosh yawn yelp
    musik musique musica música muzyka gelächter applaus aplausos applausi rires risas risate музыка смех аплодисменты
    音楽 拍手 笑 笑い 笑い声 音乐 音樂 掌声 掌聲 笑声 笑聲 음악 박수 웃음
    """
)
_SOUND_VERBS = word_set(
    """
    applaud bark boo breathe buzz chant cheer clang clear clink crackle crunch cry ding exhale frown grin gulp honk
    howl hum imitate inhale kiss knock meow mimic moo mouth mumble mutter neigh nod pant rap rattle ring roar rumble
    scream screech shatter shout shrug sing slam smack smile smirk speak splash stutter talk weep whisper wink yell
    """
)
# Words that accompany a sound in a note: "soft music in the background".
_COMPANIONS = word_set(
    """
    a an and another as at by for from his her he she they their the then to with of off on in into no over low high
    all both other one two end begin blank baby background boy boys child children crowd crowds audience everyone
    female girl girls group guy host interviewer kid kids male man men multiple people person speaker speakers student
    students woman women voice voices lip lips nose throat tongue teeth head face hand hands eyes breathing bright
    cheerful classical dark deep distance distant dramatic electronic emotional faint fast gentle happy heavy
    hysterical intense light long loud lively muffled native nervous ominous orchestral overlapping playful quiet rock
    jazz pop sad screen short simultaneous slow soft solemn somber suspenseful tense theme upbeat guitar piano drum
    drums organ violin trumpet song tune intro outro recording speech tone video arabic chinese dutch english french
    german greek hebrew hindi italian japanese korean language languages latin mandarin polish portuguese russian
    spanish swedish turkish
    """
)
# Things that make a sound when they do something, and what they do.
_SOURCES = word_set(
    """
    alarm ball bell bird birds camera car cars cat chair clock computer dog dogs door doors doorbell engine fire glass
    gun horn keyboard liquid machine microphone mic mouse paper papers phone phones radio rain shutter siren sirens
    telephone thunder traffic train tv water wind window
    """
)
_ACTIONS = word_set(
    """
    approach blow bounce close continue crash drip fade fall fire open pass play pour rev run shut start stop tick type
    vibrate
    """
)
_QUALIFIED_SOUNDS = word_set("music applause chatter laughter noise noises sounds")  # any adjective: "(eerie music)"
# "(tires screeching)" is a note for any subject, but with these words before "screeching" it is speech.
_NO_SUBJECT = word_set(
    """
    about always avoid be been before by enjoy ever for hate heard hear is just keep kept like love more never or quit
    saw see start started still stop than was were when while without
    """
)
_LETTERS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def is_nonspeech_note(note: str) -> bool:
    """Whether a bracketed text is a note of non-speech: one word names a sound, and all others may accompany it.

    Names of people may accompany what they do.

    >>> [is_nonspeech_note(text) for text in ("soft music in the background", "Rachel laughs", "music is my life")]
    [True, True, False]
    """
    names = words_in_note(note)
    words = [name.lower() for name in names]
    if len(words) > 8 or SPEECH_WORDS.intersection(words):
        return False
    sounds = {word for word in words if is_sound_word(word)}
    has_moving_source = not _SOURCES.isdisjoint(words) and any((_stems(word) - {word}) & _ACTIONS for word in words)
    has_act = any((_stems(word) - {word}) & (_SOUNDS | _SOUND_VERBS) for word in sounds)
    if sounds and len(words) <= 3 and words[-1] in _QUALIFIED_SOUNDS:
        return True
    if len(words) == 2 and words[1].endswith("ing") and words[1] in sounds and words[0] not in _NO_SUBJECT:
        return True
    return bool(sounds or has_moving_source) and all(
        word in sounds
        or _stems(word) & (_COMPANIONS | _SOURCES)
        or (_stems(word) - {word}) & _ACTIONS
        or word.endswith("ly")
        or (has_act and name[0].isupper())
        for name, word in zip(names, words)
    )


def words_in_note(note: str) -> list[str]:
    """The words of a note, without the "no" of "no audio"; before other words "no" is an answer."""
    words = _LETTERS.findall(note)
    is_absence = len(words) > 1 and (is_sound_word(words[1].lower()) or words[1].lower() == "speech")
    return words[1:] if is_absence and words[0].lower() == "no" else words


def is_sound_word(word: str) -> bool:
    """Whether a lower-case word names a sound.

    >>> is_sound_word("sobbing"), is_sound_word("ringing"), is_sound_word("ring")
    (True, True, False)
    """
    stems = _stems(word)
    return not stems.isdisjoint(_SOUNDS) or not (stems - {word}).isdisjoint(_SOUND_VERBS)


def _stems(word: str) -> set[str]:
    """The word and its possible stems: laughs, laughing -> laugh; sobbing -> sob; cries -> cry.

    >>> sorted(_stems("sobbing"))
    ['sob', 'sobb', 'sobbe', 'sobbing']
    """
    stems = {word}
    if word.endswith("ing"):
        stem = word[:-3]
        stems |= {stem, stem + "e", stem[:-1] if stem[-1:] == stem[-2:-1] else stem}
    elif word.endswith("ies"):
        stems.add(word[:-3] + "y")
    elif word.endswith("s"):
        stems |= {word[:-1], word[:-2] if word.endswith("es") else word[:-1]}
    return stems
