"""MELD in its official split: transcripts and labels, and the audio where MELD.Raw is at hand.

MELD.Raw, as its owners ship it, holds three CSV files and three folders of one mp4 per utterance. The folders go by
the archives' own names (train_splits, dev_splits_complete, output_repeated_splits_test) or by train, dev, test; a wav
or flac of the same name is taken in place of the mp4. Sample rates are read off the file, never assumed.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from training.config import MELD_LABELS
from training.corpora.records import SPLITS, Corpus, Dialogue, Utterance, data_folder, label_index, read_csv

FOLDERS = {
    "train": ("train_splits", "train/train_splits", "train"),
    "dev": ("dev_splits_complete", "dev/dev_splits_complete", "dev"),
    "test": ("output_repeated_splits_test", "test/output_repeated_splits_test", "test"),
}
KINDS = (".wav", ".flac", ".mp4")  # the first found is used


def load(root: Path | None = None) -> Corpus:
    """The whole corpus. Two clips exist nowhere (train dia125_utt3, dev dia110_utt7); their words stay."""
    folder = root or data_folder() / "meld"
    missing: list[Path] = []
    found = [dialogue for split in SPLITS for dialogue in _read(folder, split, missing)]
    return Corpus("meld", MELD_LABELS, tuple(found), tuple(missing))


def _read(folder: Path, split: str, missing: list[Path]) -> list[Dialogue]:
    clips = _clips(folder, split)
    at = next(iter(clips.values())).parent if clips else None
    dialogues = []
    for number, group in groupby(read_csv(folder / f"{split}_sent_emo.csv"), key=lambda row: row["Dialogue_ID"]):
        turns = sorted(group, key=lambda row: int(row["Utterance_ID"]))
        records = tuple(
            Utterance(
                row["Utterance"],
                label_index(row["Emotion"]),
                row["Speaker"],
                clips.get(f"dia{number}_utt{row['Utterance_ID']}"),
            )
            for row in turns
        )
        dialogues.append(Dialogue(f"meld-{split}-{number}", split, records, int(number) % 5))
        gone = (row["Utterance_ID"] for row, record in zip(turns, records) if at and record.audio is None)
        missing += [at / f"dia{number}_utt{place}.mp4" for place in gone if at]
    return dialogues


def _clips(folder: Path, split: str) -> dict[str, Path]:
    """dia0_utt0 -> its file. The test folder also holds macOS' ._ files and final_videos_… duplicates: left out."""
    for name in FOLDERS[split]:
        if (folder / name).is_dir():
            files = [f for f in (folder / name).iterdir() if f.suffix in KINDS and f.name.startswith("dia")]
            files.sort(key=lambda f: KINDS.index(f.suffix), reverse=True)
            return {f.stem: f for f in files}
    return {}
