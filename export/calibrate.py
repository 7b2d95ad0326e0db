"""What values the inside of a model takes while conversations run: one file that every INT8 profile is made from.

    python -m export.calibrate runs/mine/float32 --out runs/mine/calibration.json
    python -m export.calibrate runs/mine/float32 --on manifest:mine.jsonl --turns 1000 --out runs/mine/calibration.json

The float32 bundle runs conversations of its training data turn by turn, as a robot would: rings fill up from empty to
full windows, either modality is missing in a part of the turns. Every input of a product with constant weights is seen
(export/linears.py); memory does not grow with the data. A killed run goes on from OUT.partial. Test data are not read.
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
from rich.table import Table

from export.conversations import conversations, counts, digest, singles, talk
from export.histogram import METHODS, Histogram, Method
from export.linears import Linear, linears
from export.migrate import Channels
from export.watch import watched
from hbaf_edge import __version__
from hbaf_edge.bundle import GRAPHS, Bundle, load_bundle
from hbaf_edge.errors import HBAFError
from training.command import cli
from training.corpora.records import Dialogue
from training.files import write_json
from training.loop import peak_memory

FORMAT = 1
SAVE_EVERY = 10  # conversations
FEW = 200  # turns


class CalibrationError(HBAFError):
    """A calibration file or its data cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Calibration:
    """What `export.calibrate` wrote.

    Attributes:
        ranges: (low, high) by method and `Linear.key`.
        channels: what each channel was, by `Linear.key`, where the channel is the last axis.
        model: SHA-256 of each float32 graph it belongs to.
        about: data, counts, versions.
        sha256: of the file.
    """

    ranges: dict[Method, dict[str, tuple[float, float]]]
    channels: dict[str, Channels]
    model: dict[str, str]
    about: dict[str, Any]
    sha256: str


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
    return Calibration(ranges, channels, model, about, hashlib.sha256(content).hexdigest())


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


def activations(products: Sequence[Linear]) -> dict[str, list[str]]:
    """Their inputs by graph, each once."""
    return {g: list(dict.fromkeys(one.activation for one in products if one.graph == g)) for g in GRAPHS}


def calibrate(bundle: Bundle, dialogues: Sequence[Dialogue], out: Path, threads: int = 2) -> Calibration:
    """Run the conversations and write the file, once it is whole.

    Raises:
        CalibrationError: a tensor took a value that is not finite, or another version exported the bundle.
    """
    data: dict[str, Any] = {**counts(dialogues), "sha256": digest(dialogues)}
    _warn_of_few(data)
    pinned = {"format": FORMAT, "model": hashes(bundle), "data": data}
    partial = out.with_name(out.name + ".partial")
    seen, done = _resumed(partial, pinned)
    products = _known_products(bundle)
    wanted = activations(products)
    # A convolution's channels are not the last axis, and nothing is done by channel there.
    by_channel = {one.key for one in products if one.axis == 1}
    seen = seen or {key: Histogram(key in by_channel) for g in GRAPHS for key in (f"{g}/{name}" for name in wanted[g])}

    def see(graph: str, tensors: dict[str, NDArray[Any]]) -> None:
        for name, value in tensors.items():
            try:
                seen[f"{graph}/{name}"].add(value)
            except ValueError as error:
                raise CalibrationError(f"{graph}/{name} took {error}: the model or its data are broken") from None

    out.parent.mkdir(parents=True, exist_ok=True)
    with watched(bundle, wanted, see, threads) as runtime:
        if done:
            say(f"going on behind {done} of {len(dialogues)} conversations")
        for number in track(range(done, len(dialogues)), description="calibrating"):
            talk(runtime, dialogues[number])
            if (number + 1) % SAVE_EVERY == 0:
                state = {key: histogram.state() for key, histogram in seen.items()}
                write_json(partial, {**pinned, "done": number + 1, "tensors": state})
    left_out = _not_shown(seen)
    if left_out:
        say(
            f"[yellow]{data['words_alone']} turns have words alone, {data['sound_alone']} sound alone, {data['both']} "
            f"both[/]: without words and sound nothing is known of {', '.join(left_out)}, which will compute in float32"
        )
        seen = {key: histogram for key, histogram in seen.items() if key.split("/")[0] not in left_out}
    about = {"data": data, "created_by": f"hbaf-edge {__version__}", "methods": METHODS}
    tensors = {key: _entry(histogram) for key, histogram in seen.items()}
    write_json(out, {"format": FORMAT, "about": about, "model": hashes(bundle), "tensors": tensors})
    partial.unlink(missing_ok=True)
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


def _known_products(bundle: Bundle) -> list[Linear]:
    """Products with constant weights, of which every graph must have some."""
    products = all_linears(bundle)
    unknown = [graph for graph in GRAPHS if not any(one.graph == graph for one in products)]
    if unknown:
        raise CalibrationError(
            f"{bundle.path}: no product with constant weights is known in {', '.join(unknown)}; it was exported by "
            f"{bundle.manifest.get('created_by', 'another version')}: export the checkpoint again with this version, "
            f"{__version__} (python -m export.to_onnx)"
        )
    return products


def _not_shown(seen: dict[str, Histogram]) -> tuple[str, ...]:
    """Graphs whose ranges the data do not show: where a modality is missing its encoder, and what mixes the two."""
    runs = {graph: [h.count for key, h in seen.items() if key.split("/")[0] == graph] for graph in GRAPHS}
    partly = [graph for graph, counts in runs.items() if any(counts) and not all(counts)]
    if partly:
        raise CalibrationError(f"a part of the {partly[0]} graph was never reached; export the checkpoint again")
    missing = [graph for graph in ("audio", "text") if not any(runs[graph])]
    return (*missing, "utterance", "dialogue") if missing else ()


def _entry(histogram: Histogram) -> dict[str, Any]:
    found = {method: histogram.range(method) for method in METHODS}
    return {
        "count": histogram.count,
        "ranges": found,
        "cut_off": {method: histogram.outside(*range_) for method, range_ in found.items()},
        **({"channels": histogram.channels()} if histogram.by_channel else {}),
    }


def _resumed(partial: Path, pinned: dict[str, Any]) -> tuple[dict[str, Histogram], int]:
    """Histograms and how many conversations they hold, where an unfinished run of the same model and data left them."""
    if not partial.exists():
        return {}, 0
    try:
        stored = json.loads(partial.read_text())
        if any(stored[key] != value for key, value in pinned.items()):
            say(f"[yellow]{partial} is of another model or other data; starting anew[/]")
            return {}, 0
        return {key: Histogram.restored(state) for key, state in stored["tensors"].items()}, int(stored["done"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"[yellow]{partial} cannot be read ({error}); starting anew[/]")
        return {}, 0


def table(found: Calibration, bundle: Bundle) -> Table:
    """Blocks, how far their inputs reach, and how much of that each method keeps."""
    shown = Table("block", "inputs", "reach", *(f"{m}, % of it" for m in METHODS[1:]), title="calibration")
    blocks: dict[str, list[str]] = {}
    for linear in all_linears(bundle):
        if linear.key not in found.ranges["minmax"]:
            continue  # its modality was not shown
        keys = blocks.setdefault(linear.block, [])
        if linear.key not in keys:
            keys.append(linear.key)
    for block, keys in blocks.items():
        whole = [_reach(found.ranges["minmax"][key]) for key in keys]
        kept = [
            min(100 * _reach(found.ranges[m][key]) / max(w, 1e-12) for key, w in zip(keys, whole)) for m in METHODS[1:]
        ]
        shown.add_row(block, str(len(keys)), f"{max(whole):.1f}", *(f"{k:.0f}" for k in kept))
    return shown


def _reach(range_: tuple[float, float]) -> float:
    return max(-range_[0], range_[1])


def main(
    bundle: Path,
    /,
    out: Path,
    on: str | None = None,
    turns: int = 1000,
    single: bool = False,
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Calibrate.

    Args:
        bundle: float32 bundle of export.to_onnx.
        out: the calibration file.
        on: corpus in place of the bundle's own, such as manifest:mine.jsonl.
        turns: how many, about.
        single: every turn by itself, to compare with.
        seed: of order, lengths and what is missing.
        threads: of the runtime.
    """
    loaded = load_bundle(bundle)
    all_linears(loaded)  # refused before any data are read
    dialogues = conversations(loaded.manifest, "train", turns, on, seed)
    found = calibrate(loaded, singles(dialogues) if single else dialogues, out, threads)
    Console().print(table(found, loaded))
    print(json.dumps({"out": str(out), "sha256": found.sha256, "peak_mb": round(1000 * peak_memory()), **found.about}))


if __name__ == "__main__":
    cli(main)
