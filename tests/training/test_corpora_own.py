"""Readers of corpora that need a licence, on generated files of the same format, and of the user's own data."""

import csv
import json

import av
import numpy as np
import pytest
import soundfile

from tests.conftest import speech
from training import corpora
from training.corpora import features, iemocap, manifest
from training.corpora.records import UNLABELLED, CorpusError

RATE = 22_050  # not 16 kHz, since MELD's clips have several rates


def write_mp4(path, samples, rate):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples[None] * 0.9).astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


@pytest.fixture
def meld_raw(tmp_path):
    """Two dialogues per split with mp4 clips in the archives' folders. One clip is also a wav, one is missing."""
    for split, folder in (
        ("train", "train_splits"),
        ("dev", "dev_splits_complete"),
        ("test", "output_repeated_splits_test"),
    ):
        (tmp_path / folder).mkdir()
        rows = ["Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID"]
        for d in range(2):
            for u in range(2):
                rows.append(f"1,Words {d} {u}.,Ross,joy,positive,{d},{u}")
                if (d, u) != (1, 1):
                    write_mp4(tmp_path / folder / f"dia{d}_utt{u}.mp4", speech(1.0, 44_100), 44_100)
        (tmp_path / f"{split}_sent_emo.csv").write_text("\n".join(rows))
    soundfile.write(tmp_path / "train_splits" / "dia0_utt0.wav", speech(0.5, RATE), RATE)
    (tmp_path / "output_repeated_splits_test" / "._dia0_utt0.mp4").write_bytes(b"macOS")
    return tmp_path


def test_meld_raw_is_read_from_its_original_folders(meld_raw):
    corpus = corpora.load(f"meld:{meld_raw}")
    first, second = corpus.split("train")
    assert [t.audio.suffix for t in first.turns] == [".wav", ".mp4"]
    assert second.turns[1].audio is None
    assert second.turns[1].text == "Words 1 1."
    assert [d.turns[0].audio.name for d in corpus.final_test()] == ["dia0_utt0.mp4", "dia1_utt0.mp4"]


@pytest.fixture
def iemocap_tree(tmp_path):
    lines = {
        "F000": ("6.29", "8.23", "neu", "Excuse me."),
        "M000": ("10.0", "11.4", "fru", "Do you have your forms?"),
        "F001": ("14.8", "18.0", "exc", "Yeah."),
        "M001": ("19.0", "20.0", "xxx", "Let me see them."),
    }
    for session in range(1, 6):
        name = f"Ses{session:02d}F_impro01"
        dialog = tmp_path / f"Session{session}" / "dialog"
        (dialog / "EmoEvaluation").mkdir(parents=True)
        (dialog / "transcriptions").mkdir()
        wav = tmp_path / f"Session{session}" / "sentences" / "wav" / name
        wav.mkdir(parents=True)
        evaluation = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for turn, (start, end, label, _) in reversed(lines.items()):  # not sorted by time
            evaluation.append(f"[{start}00 - {end}00]\t{name}_{turn}\t{label}\t[2.5000, 2.5000, 2.5000]")
            evaluation.append("C-E2:\tNeutral;\t()")
            soundfile.write(wav / f"{name}_{turn}.wav", speech(0.3), 16_000)
        (dialog / "EmoEvaluation" / f"{name}.txt").write_text("\n".join(evaluation))
        transcript = [f"{name}_{turn} [006.2901-008.2357]: {text}" for turn, (_, _, _, text) in lines.items()]
        (dialog / "transcriptions" / f"{name}.txt").write_text("\n".join(transcript))
    return tmp_path


def test_iemocap_is_read_with_six_and_four_classes(iemocap_tree):
    six, four = iemocap.load(iemocap_tree), iemocap.load(iemocap_tree, 4)
    assert six.labels == ("happy", "sad", "neutral", "angry", "excited", "frustrated")
    turns = six.dialogues[0].turns
    assert [t.text for t in turns] == ["Excuse me.", "Do you have your forms?", "Yeah.", "Let me see them."]
    assert [t.label for t in turns] == [2, 5, 4, UNLABELLED]
    assert [t.speaker for t in turns] == ["Ses01F", "Ses01M", "Ses01F", "Ses01M"]
    assert [t.gender for t in turns] == ["F", "M", "F", "M"]
    assert all(t.audio and t.audio.exists() for t in turns)
    assert [t.label for t in four.dialogues[0].turns] == [2, UNLABELLED, 0, UNLABELLED]  # excited counts as happy


def test_iemocap_sessions_are_splits_and_folds(iemocap_tree):
    corpus = iemocap.load(iemocap_tree)
    assert [d.split for d in corpus.dialogues] == ["train", "train", "train", "dev", "test"]
    assert [d.split for d in corpus.for_fold(1).dialogues] == ["train", "test", "dev", "train", "train"]


def test_iemocap_in_another_folder_raises(tmp_path):
    with pytest.raises(CorpusError, match="is it the IEMOCAP tree"):
        iemocap.load(tmp_path)


def write_npz(path, **changed):
    data = {
        "text_x": np.ones((4, 3), np.float32),
        "wav2vec": np.zeros((4, 2), np.float32),
        "emotion": np.array(["joy", "anger", "joy", "joy"]),
        "dialogue_id": np.array([0, 7, 0, 7]),
        "utterance_id": np.array([1, 0, 0, 1]),
        "speaker": np.array(list("abab")),
    }
    np.savez(path, **{**data, **changed})
    return path


def test_features_are_sorted_by_dialogue_and_utterance(tmp_path):
    corpus = features.load(write_npz(tmp_path / "f.npz", text_x=np.arange(12, dtype=np.float32).reshape(4, 3)))
    assert corpus.labels == ("anger", "joy")
    assert [d.fold for d in corpus.dialogues] == [0, 2]
    first = corpus.dialogues[0].turns
    assert first[0].vectors.text.tolist() == [[6, 7, 8]]
    assert first[0].vectors.audio.shape == (1, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"wav2vec": np.full((4, 2), np.nan)}, "finite rows"),
        ({"wav2vec": np.zeros((3, 2))}, r"wav2vec needs 4 finite rows"),
        ({"split": np.array(["x"] * 4)}, "expected train, dev or test"),
        ({"emotion": np.array([{}] * 4, dtype=object)}, "pickled objects are not read"),
    ],
)
def test_invalid_features_raise(tmp_path, changed, message):
    with pytest.raises(CorpusError, match=message):
        features.load(write_npz(tmp_path / "f.npz", **changed))


def write_lines(tmp_path, *lines, name="m.jsonl"):
    soundfile.write(tmp_path / "a.wav", speech(0.4), 16_000)
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


GOOD = [
    {"text": "Hi.", "audio": "a.wav", "label": "glad", "speaker": "x", "dialogue": "1", "split": "train"},
    {"text": "No.", "label": "cross", "speaker": "y", "dialogue": "1", "split": "train", "gender": "f"},
    {"text": "The robot speaks.", "label": "", "speaker": "robot", "dialogue": "1", "split": "train"},
    {"text": "Well.", "label": "glad", "dialogue": "2", "speaker": "x", "split": "dev"},
]


def test_manifest_is_the_same_in_json_lines_and_csv(tmp_path):
    corpus = corpora.load(str(write_lines(tmp_path, *GOOD)))
    assert corpus.labels == ("cross", "glad")
    turns = corpus.split("train")[0].turns
    assert [t.label for t in turns] == [1, 0, UNLABELLED]
    assert turns[0].audio == tmp_path / "a.wav"
    assert turns[1].gender == "f"
    with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets save it
        writer = csv.DictWriter(file, manifest.COLUMNS)
        writer.writeheader()
        writer.writerows(GOOD)
    same = corpora.load(f"manifest:{tmp_path / 'm.csv'}")
    assert [d.turns for d in same.dialogues] == [d.turns for d in corpus.dialogues]


def test_manifest_without_splits_is_split_by_dialogue_names(tmp_path):
    lines = [{"text": "x", "label": "ab"[n % 2], "dialogue": f"d{n}"} for n in range(300)]
    corpus = manifest.load(write_lines(tmp_path, *lines))
    share = [len(turns) / 300 for turns in (corpus.split("train"), corpus.split("dev"), corpus.final_test())]
    assert share == pytest.approx([0.8, 0.1, 0.1], abs=0.06)
    assert [d.split for d in manifest.load(write_lines(tmp_path, *lines[:9])).dialogues] == (
        [d.split for d in corpus.dialogues[:9]]
    ), "adding dialogues must not change the split of others"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"txt": "x", "label": "glad"}, r"m.jsonl:5: unknown column 'txt'; expected audio, text"),
        ({"audio": "b.wav", "label": "glad"}, r"m.jsonl:5: .*b.wav is missing; paths are relative"),
        (
            {"text": "x", "label": "shy", "split": "dev"},
            r"m.jsonl:5: label 'shy' of the dev split; the train split",
        ),
        ({"label": "glad"}, r"m.jsonl:5: neither audio nor text"),
        ({"text": "x", "label": "glad", "split": "valid"}, r"m.jsonl:5: split 'valid'; expected train, dev, test"),
        ({"text": "x", "dialogue": "2", "split": "train"}, r"m.jsonl:5: dialogue '2' is in the splits"),
        ({"text": ["x"], "label": "glad"}, r"m.jsonl:5: text is list"),
    ],
)
def test_invalid_line_raises_with_its_number(tmp_path, line, message):
    with pytest.raises(CorpusError, match=message):
        manifest.load(write_lines(tmp_path, *GOOD, line))


def test_file_that_is_not_a_manifest_raises(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"text": "x"\n')
    with pytest.raises(CorpusError, match=r"m.jsonl:1: not JSON"):
        manifest.load(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match="not UTF-8"):
        manifest.load(tmp_path / "m.jsonl")
    with pytest.raises(CorpusError, match="is missing"):
        manifest.load(tmp_path / "nowhere.csv")


def test_suspicious_speakers_are_reported_with_their_line(tmp_path, capsys):
    single = {"text": "x", "label": "glad", "dialogue": "3", "speaker": "x"}
    without_speaker = {"text": "x", "label": "glad", "dialogue": "4"}
    manifest.load(write_lines(tmp_path, *GOOD, single, single, without_speaker, without_speaker))
    warnings = " ".join(capsys.readouterr().err.split())
    assert "m.jsonl:5: dialogue '3' has 2 turns by one speaker" in warnings
    assert "m.jsonl:7: no speaker in dialogue '4'" in warnings


def test_empty_split_raises(tmp_path):
    corpus = manifest.load(write_lines(tmp_path, *GOOD[:3]))
    with pytest.raises(CorpusError, match="has no labelled utterance in its dev split"):
        corpus.require("train", "dev")


def test_corpus_with_other_labels_than_the_model_raises(small_corpora):
    with pytest.raises(CorpusError, match="has the labels anger"):
        corpora.load("nemo", ("glad", "cross"))
