"""Batches of dialogues: joined histories, speaker relations, padding, paired clips."""

import itertools
import random

import numpy as np
import torch

from training.batches import Turn, collate, join_dialogues, pad
from training.corpora.records import Dialogue, Utterance
from training.pairs import PartnerSampler


def dialogues(count):
    return [
        Dialogue(f"d{n}", "train", tuple(Utterance(f"{n}.{i}", 0, "ab"[i % 2]) for i in range(3 + n % 4)))
        for n in range(count)
    ]


def test_joined_histories_contain_every_turn_once_and_separate_speakers():
    histories = list(join_dialogues(dialogues(30), random.Random(0), 12))
    texts = [u.text for history in histories for u, _ in history]
    assert sorted(texts) == sorted(u.text for d in dialogues(30) for u in d.turns)
    for history in histories:
        for (u, s), (v, t) in itertools.pairwise(history):
            if u.text.split(".")[0] == v.text.split(".")[0]:
                assert int(v.text.split(".")[1]) == int(u.text.split(".")[1]) + 1
            else:
                assert s != t
    assert len({len(h) for h in histories}) > 3  # lengths are random
    assert max(map(len, histories)) > 8


def test_pad_rounds_the_length_up_to_a_multiple():
    padded, mask = pad([np.ones((5, 2)), None], (2,), 4)
    assert padded.shape == (2, 8, 2)
    assert mask.sum(1).tolist() == [5, 0]
    assert pad([None], (2,), 4)[0].shape == (1, 4, 2)


def test_collate_arranges_turns_by_dialogue():
    a, b = Turn(1, "x", np.zeros((2, 3, 5)), None), Turn(2, None, None, np.zeros((6, 2, 6)))
    audio, text = [None, b.audio, b.audio], [a.text, None, None]
    batch = collate([[a, b], [b]], audio, text, (2, 6), (3, 5))
    assert batch.rows.tolist() == [[0, 1], [2, -1]]
    assert batch.labels.tolist() == [1, 2, 2]
    assert batch.audio.shape == (3, 8, 2, 6)
    assert batch.relation[0].tolist() == [[0, 2], [2, 2]]
    assert torch.equal(batch.audio_mask.any(1), torch.tensor([False, True, True]))


def test_partner_sampler_returns_clips_of_the_label_or_mismatched_clips():
    clips = [Utterance("", label, f"s{label}") for label in range(7) for _ in range(3)]
    sampler = PartnerSampler(clips, [Utterance("", 4, "plain")])
    rng = random.Random(0)
    assert {sampler.matched(3, rng).label for _ in range(20)} == {3}
    speakers = [sampler.mismatched(rng).speaker for _ in range(200)]
    assert set(speakers) == {*(f"s{label}" for label in range(7)), "plain"}  # clips of any label, and plain speech
    assert 0.4 < np.mean([s == "plain" for s in speakers]) < 0.7
