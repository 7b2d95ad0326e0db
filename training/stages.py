"""The two stages of the default recipe: what each feeds the loop in training/train.py and what it is selected on.

`TextStage` fine-tunes the text encoder inside of HBAF on joined dialogues of MELD and DailyTalk, audio absent.
`FusionStage` trains HBAF on cached states of both encoders: dialogues with label-matched clips, and clips alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertModel

from hbaf_edge.features import Tokeniser, normalise_text
from training import batches, caches, encoders
from training.batches import Turn
from training.config import NEUTRAL, ModelConfig, TrainConfig
from training.corpora import clips, dailytalk, meld, plain
from training.corpora.records import Dialogue, Utterance
from training.metrics import scores
from training.model import HBAF, Batch

TRAIN_TOKENS = 40  # a longer utterance is cut in the text stage only; 1 % of MELD's are


def talk(config: TrainConfig) -> tuple[list[Dialogue], list[Dialogue], list[Dialogue]]:
    """Dialogues of words: all of these train, a share of these trains in each epoch, these select."""
    if config.open:
        return dailytalk.load("train"), [], dailytalk.load("val")
    return meld.load("train"), dailytalk.load("train"), meld.load("dev")


def recordings(config: TrainConfig) -> list[Dialogue]:
    """Clips that train and select; the test fold is never loaded."""
    found = clips.load_emogator() if config.open else clips.load_ravdess() + clips.load_tess() + clips.load_emogator()
    return [d for d in found if d.split != "test"]


def encode_tokens(encoder: BertModel, batch: Batch, chunk: int = 32) -> Batch:
    """Token ids (U, T) in `batch.text` -> states; sorted by length, so that short turns are not padded to long ones."""
    lengths = batch.text_mask.sum(1)
    pieces: dict[int, Tensor] = {}
    for rows in lengths.argsort().split(chunk):
        longest = int(lengths[rows].max())
        if longest == 0:
            continue
        states = encoders.text_states(encoder, batch.text[rows, :longest].long(), batch.text_mask[rows, :longest])
        for row, state in zip(rows.tolist(), states):
            pieces[row] = nn.functional.pad(state, (0, 0, 0, 0, 0, batch.text.shape[1] - longest))
    empty = torch.zeros_like(next(iter(pieces.values())))
    batch.text = torch.stack([pieces.get(row, empty) for row in range(len(lengths))])
    return batch


class TextStage:
    """Words only: MELD train and a share of DailyTalk, the encoder trained along."""

    def __init__(self, config: TrainConfig, model: ModelConfig, text: BertModel, tokeniser: Tokeniser) -> None:
        self.config, self.model, self.text, self.tokeniser = config, model, text, tokeniser
        self.all, self.shared, self.dev_dialogues = talk(config)

    def epoch(self, rng: random.Random) -> Iterator[Batch]:
        histories = list(batches.join(_talk_of_an_epoch(self, rng), rng, self.config.max_turns))
        rng.shuffle(histories)
        for group in batches.groups(histories, self.config.sequences):
            yield self._batch(group, rng)

    def dev(self) -> Iterator[Batch]:
        for group in batches.groups(self.dev_dialogues, 8):
            yield self._batch([batches.alone(d) for d in group], None)

    def judge(self, model: HBAF) -> dict[str, float]:
        """Selected on weighted F1 of MELD dev (DailyTalk's for the open recipe)."""
        found = scores(*predict(model, self.dev()), self.model.labels)
        return {"score": float(found["weighted_f1"]), "macro_f1": float(found["macro_f1"])}

    def _batch(self, histories: Sequence, rng: random.Random | None) -> Batch:
        def turn(utterance: Utterance, speaker: str | None) -> Turn:
            ids, _ = self.tokeniser(normalise_text(utterance.text))
            if rng and rng.random() < self.config.hide_speaker:
                speaker = None
            return Turn(utterance.label, speaker, None if ids is None else ids[:TRAIN_TOKENS], None)

        made = [[turn(u, s) for u, s in history] for history in histories]
        batch = batches.collate(made, (self.model.audio_states, self.model.audio_dim), (), self.model.stack)
        return encode_tokens(self.text, batch)


class FusionStage:
    """Both modalities on cached states: dialogues with label-matched clips, and acted clips by themselves."""

    def __init__(self, config: TrainConfig, model: ModelConfig, text: BertModel, tokeniser: Tokeniser) -> None:
        self.config, self.model = config, model
        self.all, self.shared, self.dev_dialogues = talk(config)
        self.clips = recordings(config)
        paths = [t.audio for d in self.clips for t in d.turns if t.audio]
        self.neutral = [
            t.text for d in self.all + self.shared for t in d.turns if t.label == NEUTRAL and len(t.text) > 12
        ]
        self.plain = plain.load(self.neutral)
        paths += [u.audio for u in self.plain if u.audio]
        self.sounds = caches.audio_cache(paths, encoders.load_audio(model.audio_encoder))
        dialogues = [*self.all, *self.shared, *self.dev_dialogues, *self.clips]
        self.words = caches.text_cache([t.text for d in dialogues for t in d.turns], text, tokeniser)
        train = [d for d in self.clips if d.split == "train"]
        self.ravdess = [d.turns[0] for d in train if d.name.startswith("ravdess")]
        self.others = [d.turns[0] for d in train if not d.name.startswith("ravdess")]
        self.partner = batches.Partner(self.ravdess + self.others, self.plain, self.sound, config)

    def sound(self, utterance: Utterance) -> np.ndarray:
        return self.sounds[str(utterance.audio)]

    def word(self, text: str) -> np.ndarray | None:
        text = normalise_text(text)
        return self.words[text] if text else None

    def epoch(self, rng: random.Random) -> Iterator[Batch]:
        joined = batches.join(_talk_of_an_epoch(self, rng), rng, self.config.max_turns)
        talks = [[self._spoken(u, s, rng) for u, s in history] for history in joined]
        rng.shuffle(talks)
        # Dialogues and clips stay in batches of their own: words alone need no padded audio beside them.
        groups = [
            *fill(talks, 3 * self.config.max_turns),
            *fill(list(self._clip_histories(rng)), self.config.clip_batch),
        ]
        rng.shuffle(groups)
        for group in groups:
            yield self._collate(group)

    def _spoken(self, u: Utterance, speaker: str | None, rng: random.Random) -> Turn:
        """A turn of a text corpus with a partner from the clips, none, or one that misleads."""
        c, text, audio, honest = self.config, self.word(u.text), None, True
        if text is None or rng.random() < c.paired:
            if text is not None and rng.random() < c.mislead:
                audio, honest = self.partner.misleading(rng), False
            elif rng.random() >= c.drop_audio:
                audio = self.partner.pick(u.label, rng)
                text = None if rng.random() < c.drop_text else text
        if text is None and audio is None:
            audio = self.partner.pick(u.label, rng)
        return Turn(u.label, None if rng.random() < c.hide_speaker else speaker, text, audio, (honest, True))

    def clips_of_an_epoch(self) -> int:
        """How many clips an epoch shows."""
        acted = len(self.ravdess) * self.config.ravdess_repeats + min(len(self.others), self.config.other_clips)
        return acted + len(self.plain)

    def _clip_histories(self, rng: random.Random) -> Iterator[list[Turn]]:
        """Clips with their own words, none, or an unrelated neutral sentence; half of the histories are one clip."""
        others = rng.sample(self.others, min(len(self.others), self.config.other_clips))
        chosen = self.ravdess * self.config.ravdess_repeats + others + self.plain
        rng.shuffle(chosen)
        while chosen:
            length = 1 if rng.random() < 0.5 else rng.randint(2, 8)
            yield [self._clip(clip, rng) for clip in chosen[:length]]
            del chosen[:length]

    def _clip(self, u: Utterance, rng: random.Random) -> Turn:
        kind, text = rng.random(), None
        if kind < 0.2:
            text = self.word(u.text)
        elif kind < 0.35 and self.neutral:
            text = self.word(rng.choice(self.neutral))
        speaker = None if rng.random() < 0.5 else u.speaker
        # The acted corpora's fixed sentences say nothing of the label either.
        return Turn(u.label, speaker, text, self.partner.crop(self.sound(u), rng), (True, False))

    def _collate(self, histories: Sequence[Sequence[Turn]]) -> Batch:
        c = self.model
        return batches.collate(histories, (c.audio_states, c.audio_dim), (c.text_states, c.text_dim), c.stack)

    def dev_text(self) -> Iterator[Batch]:
        for group in batches.groups(self.dev_dialogues, 8):
            yield self._collate([[Turn(t.label, t.speaker, self.word(t.text), None) for t in d.turns] for d in group])

    def dev_audio(self) -> Iterator[Batch]:
        corpus = "emogator" if self.config.open else "ravdess"
        found = [d.turns[0] for d in self.clips if d.split == "dev" and d.name.startswith(corpus)]
        for group in batches.groups(found, 40):
            yield self._collate([[Turn(t.label, None, None, self.sound(t))] for t in group])

    def judge(self, model: HBAF) -> dict[str, float]:
        """Selected on the mean of dev weighted F1 (text only) and dev UAR (audio only): MELD and RAVDESS.

        The open recipe selects on DailyTalk and EmoGator instead.
        """
        text = float(scores(*predict(model, self.dev_text()), self.model.labels)["weighted_f1"])
        audio = float(scores(*predict(model, self.dev_audio()), self.model.labels)["uar"])
        return {"score": (text + audio) / 2, "text_weighted_f1": text, "audio_uar": audio}


def _talk_of_an_epoch(stage: TextStage | FusionStage, rng: random.Random) -> list[Dialogue]:
    """The drawn shares of the dialogues that always train and of those that only add to them."""
    parts = ((stage.all, stage.config.talk_share), (stage.shared, stage.config.dailytalk_share))
    return [d for dialogues, share in parts for d in rng.sample(dialogues, int(len(dialogues) * share))]


def fill(histories: Sequence[list[Turn]], turns: int) -> Iterator[list[list[Turn]]]:
    """Groups of histories of about `turns` turns."""
    group: list[list[Turn]] = []
    for history in histories:
        group.append(history)
        if sum(map(len, group)) >= turns:
            yield group
            group = []
    if group:
        yield group


@torch.inference_mode()
def predict(model: HBAF, found: Iterator[Batch]) -> tuple[Tensor, Tensor]:
    """Logits (U, labels) and labels (U,) over batches."""
    model.eval()
    pairs = [(model(batch).logits, batch.labels) for batch in found]
    return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])


def tokeniser_of() -> Tokeniser:
    """The text encoder's tokeniser."""
    return Tokeniser((encoders.folder("text") / "tokenizer.json").read_bytes())
