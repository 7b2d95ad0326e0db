"""Corpus readers on small generated corpora, and the official counts if the data are available."""

import json

import pytest
import soundfile

from tests.conftest import speech
from training.corpora import clips, dialogues, uninformative
from training.corpora.records import label_index


def test_meld_turns_are_grouped_and_ordered(tmp_path):
    rows = [
        "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID",
        '"B, b",Ross,joy,0,1',
        "A,Rachel,neutral,0,0",
        "C,Ross,sadness,1,0",
    ]
    (tmp_path / "dev_sent_emo.csv").write_text("\n".join(rows), encoding="utf-8")
    for split in ("train", "test"):
        (tmp_path / f"{split}_sent_emo.csv").write_text(rows[0])
    first, second = dialogues.load_meld(tmp_path).split("dev")
    assert [u.text for u in first.turns] == ["A", "B, b"]
    assert [u.label for u in first.turns] == [4, 3]
    assert second.turns[0].speaker == "Ross"


def test_dailytalk_labels_are_mapped_to_melds(tmp_path):
    row = {
        "dialogue_id": 5,
        "split": "val",
        "utterances": [
            {"utt": 0, "speaker": 1, "text": "x", "emotion": "none"},
            {"utt": 1, "speaker": 0, "text": "y", "emotion": "happiness"},
        ],
    }
    (tmp_path / "dialogues.jsonl").write_text(json.dumps(row) + "\n")
    (dialogue,) = dialogues.load_dailytalk(tmp_path).dialogues
    assert [u.label for u in dialogue.turns] == [4, 3]
    assert dialogue.split == "dev"


def test_ravdess_splits_have_different_speakers(tmp_path):
    head = "id,file,speaker,gender,emotion,intensity,transcript,repetition,duration_s"
    rows = [f"{n},{n}.flac,A{n:02d},M,calm,normal,Dogs.,1,3" for n in range(1, 21)]
    (tmp_path / "manifest.csv").write_text("\n".join([head, *rows]))
    ravdess = clips.load_ravdess(tmp_path).dialogues
    split = {name: {d.turns[0].speaker for d in ravdess if d.split == name} for name in ("train", "dev", "test")}
    assert split["test"] == {"A17", "A18", "A19", "A20"}
    assert not split["train"] & (split["dev"] | split["test"])
    assert {d.turns[0].label for d in ravdess} == {4}


def test_uninformative_clips_are_generated_once(tmp_path, monkeypatch, capsys):
    """Meetings are cut into three-second pieces. A missing espeak-ng is reported."""
    (tmp_path / "data" / "ami").mkdir(parents=True)
    soundfile.write(tmp_path / "data" / "ami" / "trn00.flac", speech(7.0), 16_000)
    soundfile.write(tmp_path / "data" / "ami" / "tst00.flac", speech(7.0), 16_000)
    monkeypatch.setenv("HBAF_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    clips_of_sentence = uninformative.load(["A sentence."])
    names = {u.audio.stem.split("_")[0] for u in clips_of_sentence}
    assert names == {"trn00", "noise"}
    assert sum(u.audio.stem.startswith("trn") for u in clips_of_sentence) == 2
    assert {u.label for u in clips_of_sentence} == {4}
    assert "espeak-ng is not installed" in capsys.readouterr().err
    assert [u.audio for u in uninformative.load(["A sentence."])] == [u.audio for u in clips_of_sentence]


def test_uninformative_clips_of_different_sentences_are_different_files(tmp_path, monkeypatch):
    """The open recipe must not use cached sentences of a corpus with a restricted licence."""
    monkeypatch.setenv("HBAF_DATA", str(tmp_path))
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    first, second = uninformative.load(["From one corpus."]), uninformative.load(["From another."])
    assert not {u.audio for u in first} & {u.audio for u in second}


def test_unknown_label_or_missing_corpus_raises(tmp_path):
    with pytest.raises(ValueError, match=r"unknown label 'boredom'; expected one of anger"):
        label_index("boredom")
    with pytest.raises(FileNotFoundError, match="HBAF_DATA"):
        dialogues.load_meld(tmp_path)


@pytest.mark.data
def test_corpora_have_their_official_counts():
    for split, dialogue_count, utterances in (("train", 1038, 9989), ("dev", 114, 1109), ("test", 280, 2610)):
        meld = [d for d in dialogues.load_meld().dialogues if d.split == split]
        assert (len(meld), sum(len(d.turns) for d in meld)) == (dialogue_count, utterances)
    assert len(clips.load_ravdess().dialogues) == 1200
    assert len(clips.load_tess().dialogues) == 2800
    counts = {name: len(clips.load_other_language(name).dialogues) for name in clips.OTHER_LANGUAGES}
    assert counts == {"nemo": 3148, "emospeech": 2711, "koemo": 300, "turev": 1735, "ased": 623, "secap": 374}
    assert len(clips.load_emogator().dialogues) == 3509
    assert sum(len(d.turns) for d in dialogues.load_dailytalk().dialogues) == 23_759
