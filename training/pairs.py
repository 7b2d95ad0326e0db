"""Texts and clips of different corpora, paired by label: the default recipe, for want of natural pairs.

Dialogues of words get, turn by turn, a clip of their label, or none, or one that misleads; acted clips also stand by
themselves. Selected on dev for words alone and for voice alone. Encoders are frozen and their states cached.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from training import batches, corpora
from training.batches import Turn
from training.config import NEUTRAL
from training.corpora import plain
from training.corpora.records import Dialogue, Utterance
from training.stages import CorpusStage, Group

WORTH_SAYING = 12  # characters; a shorter neutral sentence says too little to mislead


class Partner:
    """What a text utterance is paired with in training, and what is done to make partners untrustworthy.

    No corpus at hand has natural audio with natural words, so a text of label y gets a clip of label y from the acted
    corpora ("label-matched pairs", said in the model card); a share of partners misleads, and either modality is
    dropped at random, so that relevance and gate learn to reject.
    """

    def __init__(self, clips: Sequence[Utterance], plain_clips: Sequence[Utterance]) -> None:
        self.plain = plain_clips
        self.by_label: dict[int, list[Utterance]] = {}
        for clip in clips:
            self.by_label.setdefault(clip.label, []).append(clip)

    def pick(self, label: int, rng: random.Random) -> Utterance:
        """A clip of that label."""
        return rng.choice(self.by_label[label])

    def misleading(self, rng: random.Random) -> Utterance:
        """Plain speech or noise that says nothing, a neutral clip, or a clip of any label at all."""
        kind = rng.random()
        if kind < 0.55 and self.plain:
            return rng.choice(self.plain)
        labels = list(self.by_label)
        return self.pick(NEUTRAL if kind < 0.75 and NEUTRAL in labels else rng.choice(labels), rng)


class PairStage(CorpusStage):
    """Both modalities on cached states; the corpus is the one with the dialogues."""

    def prepare(self) -> None:
        """Load the clips and fill the caches."""
        self.pairs = self.config.pairs
        turns = [t for d in self.typical for t in d.turns]
        self.neutral = [t.text for t in turns if t.label == NEUTRAL and len(t.text) > WORTH_SAYING]
        self.plain = plain.load(self.neutral)
        clips = [corpora.load(name, self.corpus.labels) for name in self.pairs.clips]
        self.dev_clips = next((c.split("dev") for c in clips if c.split("dev")), [])
        self.first = [d.turns[0] for d in clips[0].split("train")]
        self.others = [d.turns[0] for c in clips[1:] for d in c.split("train")]
        self.partner = Partner(self.first + self.others, self.plain)
        self.typical += [Dialogue("", "train", (u,)) for u in [*self.first, *self.others, *self.plain]]
        self.material.prepare(self.typical, self.config.copies).prepare([*self.dev, *self.dev_clips])

    def epoch(self, rng: random.Random) -> list[Group]:
        """Dialogues and clips in batches of their own: words alone need no padded audio beside them."""
        talks = [self._spoken(history, rng) for history in self.histories(rng)]
        rng.shuffle(talks)
        clips = list(self._clip_histories(rng))
        groups = [*batches.fill(talks, self.config.turns), *batches.fill(clips, self.pairs.clip_turns)]
        rng.shuffle(groups)
        return groups

    def _spoken(self, history: batches.Joined, rng: random.Random) -> list[Turn]:
        """Turns of a text corpus, each with a partner from the clips, none, or one that misleads."""
        turns = []
        for u, speaker in batches.hidden(history, self.config.hide_speaker, rng):
            text = self.material.text(u, training=True)
            clip, honest = None, True
            if u.label in self.partner.by_label and (text is None or rng.random() < self.pairs.paired):
                if text is not None and rng.random() < self.pairs.misleading:
                    clip, honest = self.partner.misleading(rng), False
                elif rng.random() >= self.config.drop_audio:
                    clip = self.partner.pick(u.label, rng)
                    text = None if rng.random() < self.config.drop_text else text
            if text is None and clip is None:
                if u.label not in self.partner.by_label:
                    continue  # nothing was said, and nobody can say it
                clip = self.partner.pick(u.label, rng)
            sound = None if clip is None else self.material.audio(clip, rng)
            turns.append(Turn(u.label, speaker, text, sound, (honest, True)))
        return turns

    def _clip_histories(self, rng: random.Random) -> Iterator[list[Turn]]:
        """Clips with their own words, none, or an unrelated neutral sentence; half of the histories are one clip."""
        others = rng.sample(self.others, min(len(self.others), self.pairs.other_clips))
        chosen = self.first * self.pairs.repeats + others + list(self.plain)
        rng.shuffle(chosen)
        while chosen:
            length = 1 if rng.random() < 0.5 else rng.randint(2, 8)
            yield [self._clip(clip, rng) for clip in chosen[:length]]
            del chosen[:length]

    def _clip(self, u: Utterance, rng: random.Random) -> Turn:
        kind, text = rng.random(), None
        if kind < 0.2:
            text = self.material.say(u.text)
        elif kind < 0.35 and self.neutral:
            text = self.material.say(rng.choice(self.neutral))
        speaker = None if rng.random() < 0.5 else u.speaker
        # The acted corpora's fixed sentences say nothing of the label either.
        return Turn(u.label, speaker, text, self.material.audio(u, rng), (True, False))

    def judge(self) -> dict[str, float]:
        """Selected on the mean of dev weighted F1 (text only) and dev UAR (audio only): MELD and RAVDESS."""
        text = self.scores(self.dev, "text")["weighted_f1"]
        audio = self.scores(self.dev_clips, "audio")["uar"] if self.dev_clips else text
        return {"score": (text + audio) / 2, "text_weighted_f1": text, "audio_uar": audio}
