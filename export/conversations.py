"""Conversations for calibration, sensitivity and parity: long and short ones, with audio, text or both in a turn.

They come from the corpus that the checkpoint was trained on. If its turns have only text (the default recipe), each
turn gets a clip of the same label, as in training (training/pairs.py). Calibrate on train and choose on dev.
"""

from __future__ import annotations

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
from training.batches import join_dialogues
from training.config import ModelConfig, TrainConfig
from training.corpora.records import UNLABELLED, CorpusError, Dialogue, Utterance
from training.evaluate import scoring_config, scoring_corpus
from training.pairs import PartnerSampler

BOTH_SHARE, TEXT_SHARE = 0.5, 0.25  # shares of turns with both modalities and with text only; the rest is audio only
LONG = 80  # turns: half of the conversations are dialogues joined to up to this length


def conversations(
    manifest: dict[str, Any], split: str, turns: int, on: str | None = None, seed: int = 0
) -> list[Dialogue]:
    """Conversations of 1 to more than 80 turns, with about `turns` turns in total.

    Args:
        manifest: of a bundle; it says which data the model was trained on.
        split: train or dev.
        turns: number of turns in total, about.
        on: corpus to use instead of the model's own (`training.corpora`).
        seed: of the order and of the modalities.

    Raises:
        CorpusError: no turn of the split can be used.
    """
    config = scoring_config({"train": manifest.get("training", {})})
    rng = random.Random(seed)
    if config.pair and on is None:
        dialogues = _dialogues_with_clips(config, split, rng)
    else:
        dialogues = _recipe_dialogues(config, manifest, split, on)
    dialogues = [d for d in (_drop_modalities(d, rng) for d in dialogues) if d.turns]
    if not dialogues:
        raise CorpusError(f"{on or config.corpus} has no turn with audio or text in its {split} split")
    result: list[Dialogue] = []
    count = 0
    for dialogue in _mix_lengths(dialogues, rng):
        utterances = tuple(u for u in map(drop_unusable, dialogue.turns) if u is not None)
        if utterances:
            result.append(replace(dialogue, name=f"conversation {len(result)}", turns=utterances))
            count += len(utterances)
        if count >= turns:
            break
    return result


def predict_dialogue(runtime: HBAFRuntime, dialogue: Dialogue) -> list[Prediction]:
    """Predict a dialogue turn by turn, in a new conversation."""
    conversation = runtime.conversation()
    predictions = []
    for u in dialogue.turns:
        audio = load_audio(u.audio).samples if u.audio else None
        rate = SAMPLE_RATE if audio is not None else None
        predictions.append(
            runtime.predict(audio, text=u.text or None, speaker=u.speaker, conversation=conversation, sample_rate=rate)
        )
    return predictions


def first_turns(dialogues: Sequence[Dialogue], count: int) -> list[Dialogue]:
    """The first `count` turns in total; the last dialogue is cut short."""
    result: list[Dialogue] = []
    for dialogue in dialogues:
        if count > 0:
            result.append(replace(dialogue, turns=dialogue.turns[:count]))
            count -= len(dialogue.turns)
    return result


def counts(dialogues: Sequence[Dialogue]) -> dict[str, int]:
    """Number of conversations and turns, length of the longest, and number of turns with each modality."""
    turns = [u for dialogue in dialogues for u in dialogue.turns]
    return {
        "conversations": len(dialogues),
        "turns": len(turns),
        "longest": max(len(dialogue.turns) for dialogue in dialogues),
        "both": sum(bool(u.text and u.audio) for u in turns),
        "words_alone": sum(u.audio is None for u in turns),
        "sound_alone": sum(not u.text for u in turns),
        "labelled": sum(u.label != UNLABELLED for u in turns),
    }


def _recipe_dialogues(config: TrainConfig, manifest: dict[str, Any], split: str, on: str | None) -> list[Dialogue]:
    corpus = scoring_corpus(config, ModelConfig.from_json(manifest["model"]), on)
    assert corpus is not None  # a paired recipe comes here only with a corpus given as `on`
    return corpus.split(split)


def _dialogues_with_clips(config: TrainConfig, split: str, rng: random.Random) -> list[Dialogue]:
    """The dialogues of the text corpus; each turn gets a clip of its label if there is one."""
    clips = [
        d.turns[0] for name in config.pairs.clips for d in corpora.load(name).split(split) if d.turns[0].audio
    ]  # fmt: skip
    partners = PartnerSampler(clips, [])

    def with_clip(u: Utterance) -> Utterance:
        return replace(u, audio=partners.matched(u.label, rng).audio) if u.label in partners.by_label else u

    return [replace(d, turns=tuple(map(with_clip, d.turns))) for d in corpora.load(config.corpus).split(split)]


def _drop_modalities(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """Drop audio or text from a random part of the turns that have both, and remove turns that have neither."""
    turns = []
    for u in dialogue.turns:
        draw = rng.random()
        if u.text and u.audio and draw >= BOTH_SHARE:
            u = replace(u, audio=None) if draw < BOTH_SHARE + TEXT_SHARE else replace(u, text="")
        if u.text or u.audio:
            turns.append(u)
    return replace(dialogue, turns=tuple(turns))


def drop_unusable(u: Utterance) -> Utterance | None:
    """The utterance without silent or too short audio and without empty text; None if nothing remains.

    Raises:
        CorpusError: the audio file cannot be decoded.
    """
    try:
        clip = load_audio(u.audio) if u.audio is not None else None
    except HBAFError as error:
        raise CorpusError(
            f"{u.audio}: {error}; repair it or remove it from the data (python -m training.check lists such clips)"
        ) from error
    audio = u.audio if clip is not None and not (clip.is_silent or clip.is_too_short) else None
    text = u.text if normalise_text(u.text) else ""
    return replace(u, audio=audio, text=text) if text or audio else None


def _mix_lengths(dialogues: Sequence[Dialogue], rng: random.Random) -> Iterator[Dialogue]:
    """Alternate between single dialogues and several joined ones; speakers of different dialogues stay different."""
    half = len(dialogues) // 2
    order = rng.sample(list(dialogues), len(dialogues))
    joined = (
        Dialogue("", dialogues[0].split, tuple(replace(u, speaker=speaker) for u, speaker in history))
        for history in join_dialogues(order[half:], rng, LONG)
    )
    for short in order[:half] or order:
        yield short
        yield from itertools.islice(joined, 1)
    yield from joined
