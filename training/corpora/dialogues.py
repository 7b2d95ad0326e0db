"""Dialogue corpora: MELD in its official split, with audio if MELD.Raw is available, and DailyTalk (text only).

MELD.Raw, as published, contains three CSV files and three folders with one mp4 per utterance. The folders are named as
in the archives (train_splits, dev_splits_complete, output_repeated_splits_test) or train, dev, test. A wav or flac file
of the same name is used instead of the mp4. Sample rates are read from the files.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

from training.config import MELD_LABELS
from training.corpora.records import SPLITS, Corpus, Dialogue, Utterance, data_folder, label_index, read_csv

FOLDERS = {
    "train": ("train_splits", "train/train_splits", "train"),
    "dev": ("dev_splits_complete", "dev/dev_splits_complete", "dev"),
    "test": ("output_repeated_splits_test", "test/output_repeated_splits_test", "test"),
}
SUFFIXES = (".wav", ".flac", ".mp4")  # in order of preference
DAILYTALK_NAMES = {"none": "neutral", "happiness": "joy", "no emotion": "neutral"}


def load_meld(root: Path | None = None) -> Corpus:
    """Load MELD. Two clips were never published (train dia125_utt3, dev dia110_utt7); their text is kept."""
    folder = root or data_folder() / "meld"
    missing: list[Path] = []
    dialogues = [dialogue for split in SPLITS for dialogue in _read(folder, split, missing)]
    return Corpus("meld", MELD_LABELS, tuple(dialogues), tuple(missing))


def load_dailytalk(root: Path | None = None) -> Corpus:
    """Load DailyTalk: everyday dialogues of two speakers, text only (CC BY-SA 4.0), in the official split."""
    path = (root or data_folder() / "dailytalk") / "dialogues.jsonl"
    dialogues = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        turns = tuple(
            Utterance(u["text"], label_index(u["emotion"], DAILYTALK_NAMES), str(u["speaker"]))
            for u in row["utterances"]
        )
        split = row["split"].replace("val", "dev")
        dialogues.append(Dialogue(f"dailytalk-{row['dialogue_id']}", split, turns))
    return Corpus("dailytalk", MELD_LABELS, tuple(dialogues))


def _read(folder: Path, split: str, missing: list[Path]) -> list[Dialogue]:
    clips = _clips(folder, split)
    clip_folder = next(iter(clips.values())).parent if clips else None
    dialogues = []
    for number, group in groupby(read_csv(folder / f"{split}_sent_emo.csv"), key=lambda row: row["Dialogue_ID"]):
        turns = []
        for row in sorted(group, key=lambda row: int(row["Utterance_ID"])):
            name = f"dia{number}_utt{row['Utterance_ID']}"
            if clip_folder is not None and name not in clips:
                missing.append(clip_folder / f"{name}.mp4")
            turns.append(Utterance(row["Utterance"], label_index(row["Emotion"]), row["Speaker"], clips.get(name)))
        dialogues.append(Dialogue(f"meld-{split}-{number}", split, tuple(turns), int(number) % 5))
    return dialogues


def _clips(folder: Path, split: str) -> dict[str, Path]:
    """Map names such as dia0_utt0 to files. The test folder's ._ files and final_videos_… duplicates are ignored."""
    for name in FOLDERS[split]:
        if (folder / name).is_dir():
            files = [f for f in (folder / name).iterdir() if f.suffix in SUFFIXES and f.name.startswith("dia")]
            files.sort(key=lambda f: SUFFIXES.index(f.suffix), reverse=True)
            return {f.stem: f for f in files}
    return {}
