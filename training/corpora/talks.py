"""Dialogues of words: MELD in its official split, with the audio where MELD.Raw is at hand, and DailyTalk.

MELD.Raw, as its owners ship it, holds three CSV files and three folders of one mp4 per utterance. The folders go by
the archives' own names (train_splits, dev_splits_complete, output_repeated_splits_test) or by train, dev, test; a wav
or flac of the same name is taken in place of the mp4. Sample rates are read off the file, never assumed.
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
KINDS = (".wav", ".flac", ".mp4")  # the first found is used
DAILYTALK_NAMES = {"none": "neutral", "happiness": "joy", "no emotion": "neutral"}


def load_meld(root: Path | None = None) -> Corpus:
    """The whole corpus. Two clips exist nowhere (train dia125_utt3, dev dia110_utt7); their words stay."""
    folder = root or data_folder() / "meld"
    missing: list[Path] = []
    found = [dialogue for split in SPLITS for dialogue in _read(folder, split, missing)]
    return Corpus("meld", MELD_LABELS, tuple(found), tuple(missing))


def load_dailytalk(root: Path | None = None) -> Corpus:
    """DailyTalk: two-speaker everyday dialogues, text (CC BY-SA 4.0), in their official split."""
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
    at = next(iter(clips.values())).parent if clips else None
    dialogues = []
    for number, group in groupby(read_csv(folder / f"{split}_sent_emo.csv"), key=lambda row: row["Dialogue_ID"]):
        turns = []
        for row in sorted(group, key=lambda row: int(row["Utterance_ID"])):
            name = f"dia{number}_utt{row['Utterance_ID']}"
            if at is not None and name not in clips:
                missing.append(at / f"{name}.mp4")
            turns.append(Utterance(row["Utterance"], label_index(row["Emotion"]), row["Speaker"], clips.get(name)))
        dialogues.append(Dialogue(f"meld-{split}-{number}", split, tuple(turns), int(number) % 5))
    return dialogues


def _clips(folder: Path, split: str) -> dict[str, Path]:
    """dia0_utt0 -> its file. The test folder also holds macOS' ._ files and final_videos_… duplicates: left out."""
    for name in FOLDERS[split]:
        if (folder / name).is_dir():
            files = [f for f in (folder / name).iterdir() if f.suffix in KINDS and f.name.startswith("dia")]
            files.sort(key=lambda f: KINDS.index(f.suffix), reverse=True)
            return {f.stem: f for f in files}
    return {}
