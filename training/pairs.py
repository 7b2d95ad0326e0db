"""Training on texts and clips of different corpora, paired by label: the default recipe, without natural pairs.

Each turn of text dialogues gets a clip of its label, or no clip, or a mismatched one. Acted clips are also used without
text. Epochs are selected by dev scores of text only and audio only. Encoders are frozen and their states cached.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from training import batches, corpora
from training.batches import History, Turn
from training.config import NEUTRAL
from training.corpora import uninformative
from training.corpora.records import Dialogue, Utterance
from training.tasks import CorpusTask, Group

MIN_SENTENCE_LENGTH = 12  # characters; shorter neutral sentences are too empty to serve as mismatched text


class PartnerSampler:
    """Sample clips for texts, with the same label or mismatched.

    This recipe's data have no natural pairs of audio and text, so a text of label y gets a clip of label y from the
    acted corpora ("label-matched pairs" in the model card). Some of the clips are mismatched, and either modality is
    dropped at random, so that relevance and gate learn to reject a modality.
    """

    def __init__(self, clips: Sequence[Utterance], uninformative_clips: Sequence[Utterance]) -> None:
        self.uninformative = uninformative_clips
        self.by_label: dict[int, list[Utterance]] = {}
        for clip in clips:
            self.by_label.setdefault(clip.label, []).append(clip)

    def matched(self, label: int, rng: random.Random) -> Utterance:
        """A clip of this label."""
        return rng.choice(self.by_label[label])

    def mismatched(self, rng: random.Random) -> Utterance:
        """Plain speech or noise (55 %), a neutral clip (20 %), or a clip of any label."""
        draw = rng.random()
        if draw < 0.55 and self.uninformative:
            return rng.choice(self.uninformative)
        labels = list(self.by_label)
        return self.matched(NEUTRAL if draw < 0.75 and NEUTRAL in labels else rng.choice(labels), rng)


class PairTask(CorpusTask):
    """Train on both modalities with cached states; `corpus` is the corpus of text dialogues."""

    def prepare(self) -> None:
        """Load the clips and fill the caches."""
        self.pairs = self.config.pairs
        turns = [t for d in self.train_data for t in d.turns]
        self.neutral = [t.text for t in turns if t.label == NEUTRAL and len(t.text) > MIN_SENTENCE_LENGTH]
        self.uninformative = uninformative.load(self.neutral)
        clips = [corpora.load(name, self.corpus.labels) for name in self.pairs.clips]
        self.dev_clips = next((c.split("dev") for c in clips if c.split("dev")), [])
        self.first_clips = [d.turns[0] for d in clips[0].split("train")]
        self.other_clips = [d.turns[0] for c in clips[1:] for d in c.split("train")]
        self.partners = PartnerSampler(self.first_clips + self.other_clips, self.uninformative)
        all_clips = [*self.first_clips, *self.other_clips, *self.uninformative]
        self.train_data += [Dialogue("", "train", (u,)) for u in all_clips]
        self.features.prepare(self.train_data, self.config.copies).prepare([*self.dev, *self.dev_clips])

    def epoch(self, rng: random.Random) -> list[Group]:
        """Batches of dialogues and batches of clips. They are separate, so that text needs no padded audio."""
        dialogues = [self._paired_turns(history, rng) for history in self.histories(rng)]
        rng.shuffle(dialogues)
        clips = list(self._clip_histories(rng))
        groups = [
            *batches.group_histories(dialogues, self.config.turns),
            *batches.group_histories(clips, self.pairs.clip_turns),
        ]
        rng.shuffle(groups)
        return groups

    def _paired_turns(self, history: History, rng: random.Random) -> list[Turn]:
        """Turns of text dialogues, each with a matched clip, a mismatched clip or none."""
        turns = []
        for u, speaker in batches.hide_speakers(history, self.config.hide_speaker, rng):
            text = self.features.text(u, training=True)
            clip, is_matched = None, True
            if u.label in self.partners.by_label and (text is None or rng.random() < self.pairs.paired):
                if text is not None and rng.random() < self.pairs.mismatched:
                    clip, is_matched = self.partners.mismatched(rng), False
                elif rng.random() >= self.config.drop_audio:
                    clip = self.partners.matched(u.label, rng)
                    text = None if rng.random() < self.config.drop_text else text
            if text is None and clip is None:
                if u.label not in self.partners.by_label:
                    continue  # neither text nor a clip of this label
                clip = self.partners.matched(u.label, rng)
            audio = None if clip is None else self.features.audio(clip, rng)
            turns.append(Turn(u.label, speaker, text, audio, (is_matched, True)))
        return turns

    def _clip_histories(self, rng: random.Random) -> Iterator[list[Turn]]:
        """Histories of clips; half of them have a single turn, the others 2 to 8."""
        others = rng.sample(self.other_clips, min(len(self.other_clips), self.pairs.other_clips))
        clips = self.first_clips * self.pairs.repeats + others + list(self.uninformative)
        rng.shuffle(clips)
        while clips:
            length = 1 if rng.random() < 0.5 else rng.randint(2, 8)
            yield [self._clip_turn(clip, rng) for clip in clips[:length]]
            del clips[:length]

    def _clip_turn(self, u: Utterance, rng: random.Random) -> Turn:
        """A clip with its own sentence (20 %), an unrelated neutral sentence (15 %) or no text."""
        draw, text = rng.random(), None
        if draw < 0.2:
            text = self.features.sentence(u.text)
        elif draw < 0.35 and self.neutral:
            text = self.features.sentence(rng.choice(self.neutral))
        speaker = None if rng.random() < 0.5 else u.speaker
        # Text is never matched here: the acted corpora's fixed sentences are independent of the label, too.
        return Turn(u.label, speaker, text, self.features.audio(u, rng), (True, False))

    def evaluate(self) -> dict[str, float]:
        """Dev scores. `score` is the mean of weighted F1 (text only) and, with dev clips, UAR (audio only)."""
        text = self.scores(self.dev, "text")["weighted_f1"]
        if not self.dev_clips:
            return {"score": text, "text_weighted_f1": text}
        audio = self.scores(self.dev_clips, "audio")["uar"]
        return {"score": (text + audio) / 2, "text_weighted_f1": text, "audio_uar": audio}
