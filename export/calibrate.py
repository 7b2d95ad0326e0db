"""Record the ranges of a model's activations while it runs conversations; INT8 conversion reads the resulting file.

    python -m export.calibrate runs/mine/float32 --out runs/mine/calibration.json
    python -m export.calibrate runs/mine/float32 --on manifest:mine.jsonl --turns 1000 --out runs/mine/calibration.json

The float32 bundle runs conversations of its training data turn by turn, so that contexts from empty to full occur, and
audio or text is missing in a part of the turns. The input of every product with constant weights is recorded
(export/quantizable_matmuls.py). Memory use does not depend on the amount of data. Test data are not read.

If the data hold only audio or only text, only that encoder is calibrated; the rest is computed in float32.
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

from export.compare import tapped_runtime
from export.console import note, progress
from export.conversations import conversations, counts, predict_dialogue
from export.histogram import METHODS, Histogram, Method
from export.quantizable_matmuls import QuantizableMatmul, quantizable_matmuls
from export.smoothquant import ChannelStats
from hbaf_edge import __version__
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from hbaf_edge.errors import HBAFError
from training.command import cli, emit
from training.corpora.records import Dialogue, digest
from training.files import write_json
from training.loop import peak_memory

FORMAT = 1
FEW_TURNS = 200  # fewer turns cause a warning


class CalibrationError(HBAFError):
    """A calibration file or its data cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Calibration:
    """Content of a calibration file."""

    ranges: dict[Method, dict[str, tuple[float, float]]]  # (low, high) by method and `QuantizableMatmul.key`
    channels: dict[str, ChannelStats]  # by the same key, for activations whose last axis is channels
    about: dict[str, Any]  # data, counts, versions
    sha256: str  # of the file


def load(path: Path, bundle: Bundle | None = None) -> Calibration:
    """Read a calibration file.

    Args:
        path: the file.
        bundle: check that the file was made with this bundle.

    Raises:
        CalibrationError: it is not a calibration file, has another format, or was made with another bundle.
    """
    try:
        content = path.read_bytes()
        stored = json.loads(content)
        if stored["format"] != FORMAT:
            raise CalibrationError(f"{path} has format {stored['format']}, not {FORMAT}; calibrate again")
        tensors = {key: entry["ranges"] for key, entry in stored["tensors"].items()}
        ranges = {m: {key: (float(r[m][0]), float(r[m][1])) for key, r in tensors.items()} for m in METHODS}
        channels = {
            key: ChannelStats(*(np.array(entry["channels"][name], np.float32) for name in ("low", "high", "mean")))
            for key, entry in stored["tensors"].items() if "channels" in entry
        }  # fmt: skip
        model, about = dict(stored["model"]), dict(stored["about"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CalibrationError(
            f"{path} is not a calibration file ({error}); make one with python -m export.calibrate"
        ) from None
    if bundle is not None and model != graph_hashes(bundle):
        different = [graph for graph, sha256 in graph_hashes(bundle).items() if model.get(graph) != sha256]
        raise CalibrationError(
            f"{path} was made with another model than {bundle.path} ({', '.join(different)} differ), so its ranges do "
            "not apply; calibrate this float32 bundle"
        )
    return Calibration(ranges, channels, about, hashlib.sha256(content).hexdigest())


def graph_hashes(bundle: Bundle) -> dict[str, str]:
    """SHA-256 of each graph."""
    return {graph: hashlib.sha256(bundle.graph(graph)).hexdigest() for graph in GRAPHS}


def bundle_matmuls(bundle: Bundle) -> list[QuantizableMatmul]:
    """The quantizable products of all four graphs of a float32 bundle.

    Raises:
        CalibrationError: the bundle's weights are not float32.
    """
    if bundle.manifest["precision"] != "float32":
        raise CalibrationError(
            f"{bundle.path} has {bundle.manifest['precision']} weights; use the float32 bundle that "
            "python -m export.to_onnx CHECKPOINT --out FOLDER makes"
        )
    graphs = {graph: onnx.load_from_string(bundle.graph(graph)) for graph in GRAPHS}
    return [matmul for graph, model in graphs.items() for matmul in quantizable_matmuls(graph, model)]


def calibrate(bundle: Bundle, dialogues: Sequence[Dialogue], out: Path, threads: int = 2) -> Calibration:
    """Run conversations, record all activations and write the calibration file.

    Raises:
        CalibrationError: a tensor has values that are not finite, or the bundle's weights have unknown names.
    """
    data: dict[str, Any] = {**counts(dialogues), "sha256": digest(dialogues)}
    _warn_about_few_turns(data)
    histograms = _record(bundle, dialogues, _checked_matmuls(bundle), threads)
    uncovered = _uncovered_graphs(histograms)
    if uncovered:
        note(
            f"[yellow]{data['words_alone']} turns have only text, {data['sound_alone']} only audio, {data['both']} "
            f"both[/], so there are no ranges for {', '.join(uncovered)}, which will be computed in float32"
        )
    about = {"data": data, "created_by": f"hbaf-edge {__version__}", "methods": METHODS}
    tensors: dict[str, dict[str, Any]] = {}
    for key, histogram in histograms.items():
        if key.split("/")[0] in uncovered:
            continue
        tensors[key] = {"ranges": {method: histogram.range(method) for method in METHODS}}
        if histogram.by_channel:
            tensors[key]["channels"] = histogram.channels()
    write_json(out, {"format": FORMAT, "about": about, "model": graph_hashes(bundle), "tensors": tensors})
    return load(out, bundle)


def _checked_matmuls(bundle: Bundle) -> list[QuantizableMatmul]:
    """The bundle's products; an error if a graph has none, since another version exported it with other names."""
    matmuls = bundle_matmuls(bundle)
    unknown = set(GRAPHS) - {matmul.graph for matmul in matmuls}
    if unknown:
        raise CalibrationError(
            f"{bundle.path}: there is no known product with constant weights in {', '.join(sorted(unknown))}; it was "
            f"exported by {bundle.manifest['created_by']}: export it again with this version (python -m export.to_onnx)"
        )
    return matmuls


def _record(
    bundle: Bundle, dialogues: Sequence[Dialogue], matmuls: Sequence[QuantizableMatmul], threads: int
) -> dict[str, Histogram]:
    """Histograms of the products' activations over all turns, by `QuantizableMatmul.key`."""
    activations = {g: list(dict.fromkeys(m.activation for m in matmuls if m.graph == g)) for g in GRAPHS}
    # The channels of a convolution are not the last axis, and convolutions are not smoothed.
    by_channel = {matmul.key for matmul in matmuls if matmul.axis == 1}
    histograms = {matmul.key: Histogram(matmul.key in by_channel) for matmul in matmuls}

    def record(graph: str, tensors: dict[str, NDArray[Any]]) -> None:
        for name, value in tensors.items():
            try:
                histograms[f"{graph}/{name}"].add(value)
            except ValueError as error:
                raise CalibrationError(f"{graph}/{name} has {error}: the model or its data are broken") from None

    with tapped_runtime(bundle, activations, record, threads) as runtime:
        for dialogue in progress(dialogues, "calibrating"):
            predict_dialogue(runtime, dialogue)
    return histograms


def _warn_about_few_turns(data: dict[str, Any]) -> None:
    """Warn if there are few turns in total, with audio or with text; their ranges may be too small."""
    if data["turns"] < FEW_TURNS:
        note(f"[yellow]only {data['turns']} turns: the ranges may be too small[/]; use {FEW_TURNS} or more")
    few = FEW_TURNS // 4
    for modality, key in (("audio", "sound_alone"), ("text", "words_alone")):
        count = data[key] + data["both"]
        if 0 < count < few:
            note(f"[yellow]only {count} turns with {modality}: its ranges may be too small[/]; use {few} or more")


def _uncovered_graphs(histograms: dict[str, Histogram]) -> tuple[str, ...]:
    """Graphs without valid ranges: an encoder that never ran, and with it the graphs that mix audio and text."""
    covered = {key.split("/")[0] for key, histogram in histograms.items() if histogram.count}
    missing = [graph for graph in ("audio", "text") if graph not in covered]
    return (*missing, "utterance", "dialogue") if missing else ()


def main(
    bundle: Path,
    /,
    out: Path,
    on: str | None = None,
    turns: int = 1000,
    threads: int = 2,
    json_output: bool = False,
) -> None:
    """Calibrate a float32 bundle.

    Args:
        bundle: float32 bundle of export.to_onnx.
        out: the calibration file.
        on: corpus to use instead of the model's own, such as manifest:mine.jsonl.
        turns: number of turns, about.
        threads: of the runtime.
    """
    loaded = load_bundle(bundle)
    bundle_matmuls(loaded)  # check the bundle before data are read
    calibration = calibrate(loaded, conversations(loaded.manifest, "train", turns, on), out, threads)
    peak_mb, data = round(1000 * peak_memory()), calibration.about["data"]
    emit(
        {"out": str(out), "sha256": calibration.sha256, "peak_mb": peak_mb, **calibration.about},
        json_output,
        f"{data['turns']} turns in {data['conversations']} conversations; peak memory {peak_mb} MB",
        f"saved to {out}",
    )


if __name__ == "__main__":
    cli(main)
