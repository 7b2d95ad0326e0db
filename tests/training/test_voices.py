"""Corpora never met: histories, UAR, the linear model, and which model may be scored on what."""

from dataclasses import replace

import pytest
import torch

from training import corpora, encoders, voices
from training.corpora.records import Dialogue, Utterance
from training.linear import fit
from training.voices import Model, Tested


def clips_of(**labels):
    """Clips by speaker: clips_of(anna=[0, 0, 1])."""
    return [
        Dialogue(f"{name}{n}", "dev", (Utterance(f"{name}{n}", label, name),))
        for name, of_speaker in labels.items() for n, label in enumerate(of_speaker)
    ]  # fmt: skip


def test_a_history_is_of_the_same_speaker_unlabelled_and_without_the_clip_itself():
    clips = clips_of(anna=[0, 0, 4, 4, 4], bob=[0, 0, 1, 1])
    for kind in ("life-like", "one mood"):
        for dialogue in voices.with_history(clips, kind):
            *past, turn = dialogue.turns
            assert len(past) == 16
            assert all(t.label == -1 and t.speaker == turn.speaker and t.text != turn.text for t in past)


def test_one_mood_has_the_label_of_the_clip_and_life_like_has_others():
    clips = clips_of(anna=[0, 0, 4, 4, 4])
    label_of = {c.turns[0].text: c.turns[0].label for c in clips}

    def labels(kind):
        dialogues = voices.with_history(clips, kind)
        return [({label_of[t.text] for t in d.turns[:-1]}, d.turns[-1].label) for d in dialogues]

    assert all(past == {label} for past, label in labels("one mood"))
    assert set().union(*(past for past, _ in labels("life-like"))) == {0, 4}


def test_only_clips_with_every_kind_of_history_are_sampled():
    clips = clips_of(anna=[0, 0, 1, 1, 2], bob=[3, 3, 3], carl=[0, 0, 1])
    clips += [replace(c, turns=(replace(c.turns[0], speaker=None),)) for c in clips_of(unknown=[0, 0, 1, 1])]
    sample = voices.sample_clips(clips, 100)
    assert {c.name for c in sample} == {"anna0", "anna1", "anna2", "anna3"}
    for kind in voices.HISTORIES:
        assert len(voices.with_history(sample, kind)) == len(sample)


def test_a_sample_is_of_few_speakers_or_a_part_of_each():
    many = clips_of(**{f"s{n}": [0, 0, 1, 1] for n in range(50)})
    assert len(voices.sample_clips(many, 40)) == 40
    assert len({c.turns[0].speaker for c in voices.sample_clips(many, 40)}) == 10
    few = clips_of(a=[0, 1] * 300, b=[0, 1] * 300)
    assert len(voices.sample_clips(few, 400)) == 400
    assert voices.sample_clips(few, 400) == voices.sample_clips(few, 400)


def test_unseen_uar_counts_only_labels_that_occur():
    logits = torch.tensor([[0.0, 9.0, 1.0], [0.0, 9.0, -1.0]])
    padded = torch.cat([logits, torch.full((2, 4), 20.0)], 1)
    assert voices.unseen_uar(padded, torch.tensor([2, 0])) == 1.0


def test_weights_decide_between_contradicting_rows():
    x, y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]), torch.tensor([0, 1, 1, 0])
    for favoured, label in ((torch.tensor([1.9, 0.1, 1.9, 0.1]), 0), (torch.tensor([0.1, 1.9, 0.1, 1.9]), 1)):
        w, b = fit(x, y, 2, 1e-3, favoured)
        assert int((torch.tensor([[1.0]]) @ w + b).argmax()) == label


@pytest.mark.parametrize(
    ("trained_on", "has_met"),
    [(("meld", "tess"), False), (("ravdess",), True), (("ravdess-8",), True), (("unknown",), True), ((), True)],
)
def test_a_model_is_not_scored_on_clips_that_it_may_have_been_trained_on(trained_on, has_met):
    model = Model(lambda dialogues: None, trained_on)
    assert model.has_met(Tested("ravdess", [], (), may_be_trained_on=True)) is has_met
    assert not model.has_met(Tested("ravdess", [], (), may_be_trained_on=False))


def test_linear_model_and_model_are_scored_on_another_corpus(small_corpora):
    """The pitch of the generated clips is their label, in all corpora, for all speakers."""
    clips = corpora.load("ravdess").dialogues
    same = [replace(c, turns=(replace(c.turns[0], speaker="A"),)) for c in clips]  # 28 clips, four of each label
    asked = []

    def predict(dialogues):
        asked.append({len(d.turns) for d in dialogues})
        labels = torch.tensor([d.turns[-1].label for d in dialogues])
        return torch.nn.functional.one_hot(labels, 7).float(), labels

    sets = {"other": Tested("ravdess", same, ("nemo",)), "met": Tested("nemo", same, ("nemo",), True)}
    result = voices.score_voices(sets, encoders.load_audio(), Model(predict, ("nemo",)), 100)
    assert result["other"]["clips"] == 28
    assert result["other"]["linear, first turn"] > 0.6
    assert result["other"]["model, one mood"] == 1.0
    assert asked == [{1}, {17}, {17}]
    assert not any(column.startswith("model") for column in result["met"])


def test_pooled_states_are_relative_to_the_history(small_corpora):
    states = voices.PooledStates(encoders.load_audio(), encoders.model_config())
    a, b, c = corpora.load("nemo").split("train")[:3]
    alone = states.matrix([a, b, c])
    together = states.matrix([replace(c, turns=(*a.turns, *b.turns, *c.turns))])
    torch.testing.assert_close(together[0], alone[2] - alone[:2].mean(0))
