"""What values the inside of a model takes while conversations run: one file that every INT8 profile is made from.

    python -m export.calibrate runs/mine/float32 --out runs/mine/calibration.json
    python -m export.calibrate runs/mine/float32 --on manifest:mine.jsonl --turns 1000 --out runs/mine/calibration.json

The float32 bundle runs conversations of its training data turn by turn, as a robot would: rings fill up from empty to
full windows, either modality is missing in a part of the turns. Every input of a product with constant weights is seen
(export/linears.py); memory does not grow with the data. Test data are not read.
Data of one modality calibrate that one's encoder: the other one and the fusion keep computing in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from export.compare import watched
from export.conversations import conversations, counts, digest, talk
from export.histogram import METHODS, Histogram, Method
from export.linears import Linear, linears
from export.migrate import Channels
from hbaf_edge import __version__
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from hbaf_edge.errors import HBAFError
from training.command import cli
from training.corpora.records import Dialogue
from training.files import write_json
from training.loop import peak_memory

FORMAT = 1
FEW = 200  # turns


class CalibrationError(HBAFError):
    """A calibration file or its data cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Calibration:
    """What `export.calibrate` wrote."""

    ranges: dict[Method, dict[str, tuple[float, float]]]  # (low, high) by method and `Linear.key`
    channels: dict[str, Channels]  # by `Linear.key`, where the channel is the last axis
    about: dict[str, Any]  # data, counts, versions
    sha256: str  # of the file


def load(path: Path, bundle: Bundle | None = None) -> Calibration:
    """Read a calibration file, and refuse one of another model.

    Raises:
        CalibrationError: it is none, of another format or of another model than `bundle`.
    """
    try:
        content = path.read_bytes()
        stored = json.loads(content)
        if stored["format"] != FORMAT:
            raise CalibrationError(f"{path} has format {stored['format']}, this version reads {FORMAT}; calibrate anew")
        tensors = {key: entry["ranges"] for key, entry in stored["tensors"].items()}
        ranges = {m: {key: (float(r[m][0]), float(r[m][1])) for key, r in tensors.items()} for m in METHODS}
        channels = {
            key: Channels(*(np.array(entry["channels"][name], np.float32) for name in ("low", "high", "mean")))
            for key, entry in stored["tensors"].items() if "channels" in entry
        }  # fmt: skip
        model, about = dict(stored["model"]), dict(stored["about"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CalibrationError(
            f"{path} is no calibration file ({error}); make one: python -m export.calibrate"
        ) from None
    if bundle is not None and model != hashes(bundle):
        other = [g for g, h in hashes(bundle).items() if model.get(g) != h]
        raise CalibrationError(
            f"{path} was made with another model than {bundle.path} ({', '.join(other)} differ); its ranges mean "
            "nothing here: calibrate this float32 bundle"
        )
    return Calibration(ranges, channels, about, hashlib.sha256(content).hexdigest())


def hashes(bundle: Bundle) -> dict[str, str]:
    """SHA-256 of each graph."""
    return {graph: hashlib.sha256(bundle.graph(graph)).hexdigest() for graph in GRAPHS}


def all_linears(bundle: Bundle) -> list[Linear]:
    """Of the four graphs of a float32 bundle.

    Raises:
        CalibrationError: its weights are not float32.
    """
    if bundle.manifest["precision"] != "float32":
        raise CalibrationError(
            f"{bundle.path} holds {bundle.manifest['precision']} weights; calibrate the float32 bundle that "
            "python -m export.to_onnx CHECKPOINT --out FOLDER makes"
        )
    return [found for graph in GRAPHS for found in linears(graph, onnx.load_from_string(bundle.graph(graph)))]


def calibrate(bundle: Bundle, dialogues: Sequence[Dialogue], out: Path, threads: int = 2) -> Calibration:
    """Run the conversations and write the file, once it is whole.

    Raises:
        CalibrationError: a tensor took a value that is not finite, or another version exported the bundle.
    """
    data: dict[str, Any] = {**counts(dialogues), "sha256": digest(dialogues)}
    _warn_of_few(data)
    products = all_linears(bundle)
    unknown = set(GRAPHS) - {one.graph for one in products}
    if unknown:
        raise CalibrationError(
            f"{bundle.path}: no product with constant weights is known in {', '.join(sorted(unknown))}; it was "
            f"exported by {bundle.manifest['created_by']}: export it again with this version (python -m export.to_onnx)"
        )
    wanted = {g: list(dict.fromkeys(one.activation for one in products if one.graph == g)) for g in GRAPHS}
    # A convolution's channels are not the last axis, and nothing is done by channel there.
    by_channel = {one.key for one in products if one.axis == 1}
    seen = {one.key: Histogram(one.key in by_channel) for one in products}

    def see(graph: str, tensors: dict[str, NDArray[Any]]) -> None:
        for name, value in tensors.items():
            try:
                seen[f"{graph}/{name}"].add(value)
            except ValueError as error:
                raise CalibrationError(f"{graph}/{name} took {error}: the model or its data are broken") from None

    with watched(bundle, wanted, see, threads) as runtime:
        for dialogue in track(dialogues, description="calibrating"):
            talk(runtime, dialogue)
    left_out = _not_shown(seen)
    if left_out:
        say(
            f"[yellow]{data['words_alone']} turns have words alone, {data['sound_alone']} sound alone, {data['both']} "
            f"both[/]: without words and sound nothing is known of {', '.join(left_out)}, which will compute in float32"
        )
    about = {"data": data, "created_by": f"hbaf-edge {__version__}", "methods": METHODS}
    tensors: dict[str, dict[str, Any]] = {}
    for key, histogram in seen.items():
        if key.split("/")[0] in left_out:
            continue
        tensors[key] = {"ranges": {method: histogram.range(method) for method in METHODS}}
        if histogram.by_channel:
            tensors[key]["channels"] = histogram.channels()
    write_json(out, {"format": FORMAT, "about": about, "model": hashes(bundle), "tensors": tensors})
    return load(out, bundle)


def say(text: str) -> None:
    """To whoever runs the command, beside its output."""
    Console(stderr=True).print(text)


def _warn_of_few(data: dict[str, Any]) -> None:
    """Of turns, or of turns with sound or words: too few show little of what values can be."""
    if data["turns"] < FEW:
        say(f"[yellow]{data['turns']} turns tell little of a model's ranges[/]; give {FEW} or more")
    for what, alone in (("sound", "sound_alone"), ("words", "words_alone")):
        count = data[alone] + data["both"]
        if 0 < count < FEW // 4:
            say(f"[yellow]{count} turns with {what} tell little of what {what} can be[/]; give {FEW // 4} or none")


def _not_shown(seen: dict[str, Histogram]) -> tuple[str, ...]:
    """Graphs whose ranges the data do not show: where a modality is missing its encoder, and what mixes the two."""
    shown = {key.split("/")[0] for key, histogram in seen.items() if histogram.count}
    missing = [graph for graph in ("audio", "text") if graph not in shown]
    return (*missing, "utterance", "dialogue") if missing else ()


def main(
    bundle: Path,
    /,
    out: Path,
    on: str | None = None,
    turns: int = 1000,
    threads: int = 2,
) -> None:
    """Calibrate.

    Args:
        bundle: float32 bundle of export.to_onnx.
        out: the calibration file.
        on: corpus in place of the bundle's own, such as manifest:mine.jsonl.
        turns: how many, about.
        threads: of the runtime.
    """
    loaded = load_bundle(bundle)
    all_linears(loaded)  # refused before any data are read
    found = calibrate(loaded, conversations(loaded.manifest, "train", turns, on), out, threads)
    print(json.dumps({"out": str(out), "sha256": found.sha256, "peak_mb": round(1000 * peak_memory()), **found.about}))


if __name__ == "__main__":
    cli(main)
