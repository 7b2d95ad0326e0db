"""Readers of the corpora: on small trees of the same shape, and their official counts where the data are."""

import json

import pytest
import soundfile

from tests.conftest import speech
from training.corpora import clips, plain, talks
from training.corpora.records import label_index


def test_meld_groups_and_orders(tmp_path):
    rows = [
        "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID",
        '"B, b",Ross,joy,0,1',
        "A,Rachel,neutral,0,0",
        "C,Ross,sadness,1,0",
    ]
    (tmp_path / "dev_sent_emo.csv").write_text("\n".join(rows), encoding="utf-8")
    for split in ("train", "test"):
        (tmp_path / f"{split}_sent_emo.csv").write_text(rows[0])
    first, second = talks.load_meld(tmp_path).split("dev")
    assert [u.text for u in first.turns] == ["A", "B, b"]
    assert [u.label for u in first.turns] == [4, 3]
    assert second.turns[0].speaker == "Ross"


def test_dailytalk_renames_labels(tmp_path):
    row = {
        "dialogue_id": 5,
        "split": "val",
        "utterances": [
            {"utt": 0, "speaker": 1, "text": "x", "emotion": "none"},
            {"utt": 1, "speaker": 0, "text": "y", "emotion": "happiness"},
        ],
    }
    (tmp_path / "dialogues.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = talks.load_dailytalk(tmp_path).dialogues
    assert [u.label for u in found.turns] == [4, 3]
    assert found.split == "dev"


def test_ravdess_folds_keep_speakers_apart(tmp_path):
    head = "id,file,speaker,gender,emotion,intensity,transcript,repetition,duration_s"
    rows = [f"{n},{n}.flac,A{n:02d},M,calm,normal,Dogs.,1,3" for n in range(1, 21)]
    (tmp_path / "manifest.csv").write_text("\n".join([head, *rows]))
    found = clips.load_ravdess(tmp_path).dialogues
    split = {name: {d.turns[0].speaker for d in found if d.split == name} for name in ("train", "dev", "test")}
    assert split["test"] == {"A17", "A18", "A19", "A20"}
    assert not split["train"] & (split["dev"] | split["test"])
    assert {d.turns[0].label for d in found} == {4}


def test_plain_speech_is_cut_made_and_kept(tmp_path, monkeypatch, capsys):
    """Meeting talk in three-second pieces, noise, and without espeak-ng a word about its absence; made once."""
    (tmp_path / "data" / "ami").mkdir(parents=True)
    soundfile.write(tmp_path / "data" / "ami" / "trn00.flac", speech(7.0), 16_000)
    soundfile.write(tmp_path / "data" / "ami" / "tst00.flac", speech(7.0), 16_000)
    monkeypatch.setenv("HBAF_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = plain.load(["A sentence."])
    names = {u.audio.stem.split("_")[0] for u in found}
    assert names == {"trn00", "noise"}
    assert sum(u.audio.stem.startswith("trn") for u in found) == 2
    assert {u.label for u in found} == {4}
    assert "espeak-ng is not installed" in capsys.readouterr().err
    assert [u.audio for u in plain.load(["A sentence."])] == [u.audio for u in found]


def test_plain_speech_of_one_recipe_is_not_anothers(tmp_path, monkeypatch):
    """The open recipe must not read sentences of a corpus it leaves out from a cache the default recipe made."""
    monkeypatch.setenv("HBAF_DATA", str(tmp_path))
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    first, second = plain.load(["From one corpus."]), plain.load(["From another."])
    assert not {u.audio for u in first} & {u.audio for u in second}


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"'boredom' is not known; expected one of anger"):
        label_index("boredom")
    with pytest.raises(FileNotFoundError, match="HBAF_DATA"):
        talks.load_meld(tmp_path)


@pytest.mark.data
def test_official_counts():
    for split, dialogues, utterances in (("train", 1038, 9989), ("dev", 114, 1109), ("test", 280, 2610)):
        found = talks.load_meld().split(split)
        assert (len(found), sum(len(d.turns) for d in found)) == (dialogues, utterances)
    assert len(clips.load_ravdess().dialogues) == 1200
    assert len(clips.load_tess().dialogues) == 2800
    assert len(clips.load_emogator().dialogues) == 3509
    assert sum(len(d.turns) for d in talks.load_dailytalk().dialogues) == 23_759
