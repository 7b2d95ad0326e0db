"""Generate the example conversation with espeak-ng: conversation.jsonl and one small FLAC per turn in this folder.

    python hbaf_edge/examples/make_conversation.py        # needs Debian's espeak-ng; the demo does not

The voices are synthetic and express little emotion, so the text decides. With real speech, audio matters more.
"""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import soundfile
import soxr

VOICES = {"anna": "en-us+f3", "bob": "en-gb+m3"}
# speaker, text, espeak-ng's speed (words per minute) and pitch (0-99)
TURNS = [
    ("anna", "The letter from the hospital came this morning.", 150, 50),
    ("bob", "Oh my God, already? What does it say?", 180, 70),
    ("anna", "I got the job! I'm so happy, this is the best day of my life!", 185, 75),
    ("bob", "That's wonderful! Congratulations!", 180, 70),
    ("anna", "But it means I have to leave all of you. I'm going to miss you so much.", 130, 35),
    ("bob", "Wait, what? You're moving away? I had no idea!", 195, 80),
    ("anna", "I'm scared. What if I fail and nobody there likes me?", 150, 60),
    ("bob", "I can't believe you lied to me for a whole month! Get out of here!", 190, 65),
]


def synthesize(text: str, voice: str, speed: int, pitch: int) -> bytes:
    """Return speech from espeak-ng as a WAV."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    return subprocess.run(command, check=True, capture_output=True).stdout  # noqa: S603 - fixed arguments


def main() -> None:
    folder = Path(__file__).parent
    lines = []
    for number, (speaker, text, speed, pitch) in enumerate(TURNS):
        # espeak-ng writes to a pipe and cannot correct the sizes in the header; soundfile reads to the end.
        samples, rate = soundfile.read(io.BytesIO(synthesize(text, VOICES[speaker], speed, pitch)))
        name = f"turn{number}_{speaker}.flac"
        soundfile.write(folder / name, soxr.resample(samples, rate, 16_000), 16_000, subtype="PCM_16")
        lines.append(json.dumps({"audio": name, "text": text, "speaker": speaker}))
    (folder / "conversation.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
