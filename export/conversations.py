"""The conversations that calibration, sensitivity and parity run on: long and short ones, either modality missing.

A checkpoint's own corpus where its turns have both modalities; for the default recipe dialogues of words with clips of
the same label, as it was trained (training/pairs.py). Calibrate on train, choose on dev, read test once.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hbaf_edge import HBAFRuntime, Prediction
from hbaf_edge.audio import SAMPLE_RATE, load_audio
from hbaf_edge.errors import HBAFError
from hbaf_edge.text import normalise_text
from training import corpora
from training.batches import join
from training.config import ModelConfig, TrainConfig
from training.corpora.records import UNLABELLED, CorpusError, Dialogue, Utterance
from training.evaluate import own_corpus, settings
from training.pairs import Partner

BOTH, WORDS = 0.5, 0.25  # shares of turns that show both modalities, and words alone; the others sound alone
LONG = 80  # turns: half of the conversations are joined from dialogues until they have up to so many


def conversations(
    manifest: dict[str, Any], split: str, turns: int, on: str | None = None, seed: int = 0
) -> list[Dialogue]:
    """About so many turns of a split (train, dev or test), in conversations of 1 to 80 and more turns.

    The data are those that the bundle's manifest says it was trained on, or the corpus `on` (`training.corpora`).

    Raises:
        CorpusError: the split has no turn to run.
    """
    config = settings({"train": manifest.get("training", {})})
    rng = random.Random(seed)
    dialogues = _with_clips(config, split, rng) if config.pair and on is None else _own(config, manifest, split, on)
    shown = [d for d in (_shown(d, rng) for d in dialogues) if d.turns]
    if not shown:
        raise CorpusError(f"{on or config.corpus} has no turn with words or sound in its {split} split")
    found: list[Dialogue] = []
    count = 0
    for talk in _long_and_short(shown, rng):
        heard = tuple(u for u in map(_heard, talk.turns) if u is not None)
        if heard:
            found.append(replace(talk, name=f"conversation {len(found)}", turns=heard))
            count += len(heard)
        if count >= turns:
            break
    return found


def talk(runtime: HBAFRuntime, dialogue: Dialogue) -> list[Prediction]:
    """The predictions of a dialogue, turn by turn, in a conversation of its own."""
    chat = runtime.conversation()
    found = []
    for u in dialogue.turns:
        sound = load_audio(u.audio).samples if u.audio else None
        rate = SAMPLE_RATE if sound is not None else None
        found.append(
            runtime.predict(sound, text=u.text or None, speaker=u.speaker, conversation=chat, sample_rate=rate)
        )
    return found


def first_turns(dialogues: Sequence[Dialogue], count: int) -> list[Dialogue]:
    """As many turns in all, the last conversation cut short."""
    found: list[Dialogue] = []
    for d in dialogues:
        if count > 0:
            found.append(replace(d, turns=d.turns[:count]))
            count -= len(d.turns)
    return found


def digest(dialogues: Sequence[Dialogue]) -> str:
    """SHA-256 of all that is said and heard in them, by content and in order."""
    found = hashlib.sha256()
    sounds: dict[str, bytes] = {}
    for d in dialogues:
        for u in d.turns:
            if u.audio and str(u.audio) not in sounds:
                sounds[str(u.audio)] = hashlib.sha256(u.audio.read_bytes()).digest()
            found.update(repr((d.name, u.text, u.speaker, u.label)).encode())
            found.update(sounds[str(u.audio)] if u.audio else b"-")
    return found.hexdigest()


def counts(dialogues: Sequence[Dialogue]) -> dict[str, int]:
    """How many conversations and turns, the longest, and how many turns show what."""
    turns = [u for d in dialogues for u in d.turns]
    return {
        "conversations": len(dialogues),
        "turns": len(turns),
        "longest": max(len(d.turns) for d in dialogues),
        "both": sum(bool(u.text and u.audio) for u in turns),
        "words_alone": sum(u.audio is None for u in turns),
        "sound_alone": sum(not u.text for u in turns),
        "labelled": sum(u.label != UNLABELLED for u in turns),
    }


def _own(config: TrainConfig, manifest: dict[str, Any], split: str, on: str | None) -> list[Dialogue]:
    corpus = own_corpus(config, ModelConfig.from_json(manifest["model"]), on)
    assert corpus is not None  # a paired recipe comes here only with a corpus of the user's
    return corpus.split(split)


def _with_clips(config: TrainConfig, split: str, rng: random.Random) -> list[Dialogue]:
    """Dialogues of words whose turns get a clip of their label, where there is one."""
    clips = [
        d.turns[0] for name in config.pairs.clips for d in corpora.load(name).split(split) if d.turns[0].audio
    ]  # fmt: skip
    partner = Partner(clips, [])
    return [
        replace(d, turns=tuple(
            replace(u, audio=partner.pick(u.label, rng).audio) if u.label in partner.by_label else u for u in d.turns
        ))
        for d in corpora.load(config.corpus).split(split)
    ]  # fmt: skip


def _shown(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """Of turns that have both modalities some lose one; those with nothing are left out."""
    turns = []
    for u in dialogue.turns:
        kind = rng.random()
        if u.text and u.audio and kind >= BOTH:
            u = replace(u, audio=None) if kind < BOTH + WORDS else replace(u, text="")
        if u.text or u.audio:
            turns.append(u)
    return replace(dialogue, turns=tuple(turns))


def _heard(u: Utterance) -> Utterance | None:
    """A turn without what the runtime would hear or read nothing in; None where nothing is left."""
    try:
        sound = load_audio(u.audio) if u.audio is not None else None
    except HBAFError as error:
        raise CorpusError(
            f"{u.audio}: {error}; mend it or take it out of the data (python -m training.check lists such clips)"
        ) from error
    audio = u.audio if sound is not None and not (sound.is_silent or sound.is_too_short) else None
    text = u.text if normalise_text(u.text) else ""
    return replace(u, audio=audio, text=text) if text or audio else None


def _long_and_short(dialogues: Sequence[Dialogue], rng: random.Random) -> Iterator[Dialogue]:
    """By turns a dialogue as it is and several joined; speakers of different dialogues differ."""
    half = len(dialogues) // 2
    order = rng.sample(list(dialogues), len(dialogues))
    joined = (
        Dialogue("", dialogues[0].split, tuple(replace(u, speaker=speaker) for u, speaker in history))
        for history in join(order[half:], rng, LONG)
    )
    for short in order[:half] or order:
        yield short
        yield from itertools.islice(joined, 1)
    yield from joined
