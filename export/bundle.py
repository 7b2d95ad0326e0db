"""Finish a bundle: put the scores of every precision into its card, sign it, and write one `.hbaf` file.

    python -m export.bundle runs/mine/int8 --parity runs/mine/parity.json --sign private.pem --zip --out runs/bundle

A bundle is written to a hidden folder, loaded and run once, and only then renamed (export/atomic_replace.py).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from export import metadata
from export.atomic_replace import check_output, replace_atomically, work_folder
from export.model_card import headline, licence_text, model_card
from hbaf_edge import __version__
from hbaf_edge.audio import SAMPLE_RATE
from hbaf_edge.bundle import FORMAT, GRAPHS, Bundle, load_bundle
from hbaf_edge.errors import InputError
from hbaf_edge.runtime import HBAFRuntime
from hbaf_edge.sign import SIGNATURE, sign
from training import encoders, ledger
from training.command import cli, emit
from training.config import ModelConfig

LICENCE_FILE = "LICENSE-WEIGHTS"
NON_COMMERCIAL = {
    "id": "CC-BY-NC-SA-4.0",
    "commercial": False,
    "why": "trained on acted speech (RAVDESS and others) whose licences forbid commercial use",
}
OPEN = {
    "id": "CC-BY-SA-4.0",
    "commercial": True,
    "why": "trained only on DailyTalk (CC BY-SA 4.0), EmoGator (Apache-2.0) and AMI (CC BY 4.0)",
}
OWN = {
    "id": "LicenseRef-own-data",
    "commercial": False,
    "why": "trained on data whose licence this project does not know; their owner decides (see data)",
}
OPEN_CORPORA = ("dailytalk", "emogator", "plain")
DATA: dict[str, dict[str, Any]] = {
    "meld": {"name": "MELD (transcripts)", "licence": "GPL-3.0", "use": "text training, official split", "open": False},
    "dailytalk": {"name": "DailyTalk (transcripts)", "licence": "CC-BY-SA-4.0", "use": "text training", "open": True},
    "ravdess": {"name": "RAVDESS actors 1-14", "licence": "CC-BY-NC-SA-4.0", "use": "audio training", "open": False},
    "tess": {"name": "TESS", "licence": "CC-BY-NC-ND-4.0", "use": "audio training", "open": False},
    "nemo": {"name": "nEMO (Polish)", "licence": "CC-BY-NC-SA-4.0", "use": "audio training", "open": False},
    "emospeech": {
        "name": "EmoSpeech (Hindi and English words)",
        "licence": "CC-BY-NC-SA-4.0",
        "use": "audio training",
        "open": False,
    },
    "emogator": {"name": "EmoGator", "licence": "Apache-2.0", "use": "audio training (vocal bursts)", "open": True},
    "plain": {
        "name": "AMI (training meetings), synthetic voices and noise",
        "licence": "CC-BY-4.0",
        "use": "audio without an expression: paired with any text, and labelled neutral on its own",
        "open": True,
    },
}
PARITY_COLUMNS = ("name", "sha256", "flip_rate", "cosine_mean", "weighted_f1", "f1_drop", "megabytes", "broken")
LIMITS = [
    "English text and acted speech. No natural pairs of audio and text were available, so training paired texts and "
    "clips of the same label from different corpora. No score on such pairs is claimed.",
    "Audio was learned from acted speech and is unreliable on natural speech (python -m benchmarks.natural shows by "
    "how much): prefer text where there is any.",
    "Text is English only. Not evaluated on children or on people with speech impairments.",
    "An estimate of the emotion expressed, not of what a person feels; not for work or school (EU AI Act, Art. 5) "
    "except for medical or safety reasons.",
]


def write_bundle(
    onnx_folder: Path, out: Path, config: ModelConfig, about: dict[str, Any], key: Path | None = None
) -> Path:
    """Write a bundle from four ONNX files. An existing bundle is replaced after the new one was loaded and run.

    Args:
        onnx_folder: one ONNX file per graph, and tokenizer.json if it is not the text encoder's own.
        out: folder of the bundle; InputError if it holds anything else.
        config: sizes and labels of the model.
        about: descriptive fields of the manifest: name, precision, temperatures, licence, data, scores …
        key: Ed25519 private key to sign with.
    """
    graphs = {graph: onnx_folder / f"{graph}.onnx" for graph in GRAPHS}
    entries = {graph: metadata.entries_of(onnx.load(path)) for graph, path in graphs.items()}
    metadata.check_one_model(entries, config.labels, about["precision"])
    with replace_atomically(out) as folder:
        _write_files(folder, graphs, config, about, key)
        HBAFRuntime(folder, threads=1).predict(text="Can this bundle predict?")
    return out


def _write_files(
    folder: Path, graphs: dict[str, Path], config: ModelConfig, about: dict[str, Any], key: Path | None
) -> None:
    """Write graphs, tokenizer, licence, card, manifest and signature."""
    onnx_folder = graphs["text"].parent
    for path in graphs.values():
        shutil.copy(path, folder)
    tokenizer = onnx_folder / "tokenizer.json"
    shutil.copy(tokenizer if tokenizer.exists() else encoders.folder("text") / "tokenizer.json", folder)
    if not about["licence"].get("commercial"):
        (folder / LICENCE_FILE).write_text(licence_text(about))
    (folder / "MODEL_CARD.md").write_text(model_card(about, config.labels))
    manifest = {
        **about,
        "format": FORMAT,
        "created_by": f"hbaf-edge {__version__}",
        "labels": list(config.labels),
        "sample_rate": SAMPLE_RATE,
        "window": config.window,
        "width": config.width,
        "dialogue_layers": config.dialogue_layers,
        "stack": config.stack,
        "model": config.to_json(),
        "graphs": {graph: _signature(folder / f"{graph}.onnx") for graph in GRAPHS},
    }
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    manifest["files"] = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    if key is not None:
        (folder / SIGNATURE).write_bytes(sign((folder / "manifest.json").read_bytes(), key))


def rewrite_bundle(
    bundle: Bundle, graphs: Mapping[str, bytes], out: Path, about: dict[str, Any], key: Path | None = None
) -> Path:
    """Write a copy of a bundle with other graphs, and with `about` merged into its manifest."""
    with work_folder(out) as folder:
        for graph, content in graphs.items():
            (folder / f"{graph}.onnx").write_bytes(content)
        (folder / "tokenizer.json").write_bytes(bundle.files["tokenizer.json"])
        config = ModelConfig.from_json(bundle.manifest["model"])
        return write_bundle(folder, out, config, {**bundle.manifest, **about}, key)


def zip_bundle(bundle: Path, target: Path) -> Path:
    """Write a bundle folder as one `.hbaf` file. An existing file is replaced after the new one was loaded."""
    partial = target.with_name(target.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(bundle.iterdir()):
                archive.write(path, path.name)
        load_bundle(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _signature(path: Path) -> dict[str, Any]:
    """File name, inputs and outputs of a graph, for the manifest."""
    graph = onnx.load(path).graph

    def describe(values: Any) -> dict[str, Any]:
        return {
            v.name: {
                "type": onnx.helper.tensor_dtype_to_string(v.type.tensor_type.elem_type).removeprefix("TensorProto."),
                "shape": [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            }
            for v in values
        }

    return {"file": path.name, "inputs": describe(graph.input), "outputs": describe(graph.output)}


def finish_bundle(source: Path, out: Path, name: str | None = None, parity: Path | None = None,
                  key: Path | None = None, zipped: bool = False) -> Path:  # fmt: skip
    """Write a copy of a bundle with a complete card, with its test scores from the ledger, and a signature.

    Returns the new folder, or with `zipped` the `.hbaf` file. The parameters are those of the command, see `main`.

    Raises:
        InputError: `out` or the file would replace something else, or `parity` does not belong to this bundle.
    """
    zip_path = out.with_name(out.resolve().name + ".hbaf")
    if zipped and zip_path.is_dir():
        raise InputError(f"{zip_path} is a folder, but --zip writes a file of that name; nothing was replaced: move it")
    check_output(out)  # first, since a killed run may have left the source in the hidden folder next to `out`
    bundle = load_bundle(source)
    about: dict[str, Any] = {"name": name} if name else {}
    if parity is not None:
        about |= _parity(parity, bundle)
    about |= card_scores(bundle, bundle.manifest.get("scores", {}))
    rewrite_bundle(bundle, {graph: bundle.graph(graph) for graph in GRAPHS}, out, about, key)
    return zip_bundle(out, zip_path) if zipped else out


def card_scores(bundle: Bundle, on_dev: dict[str, Any]) -> dict[str, Any]:
    """The fields of the manifest with scores: the test scores of these graphs in the ledger, and those on dev.

    Args:
        bundle: its graphs are looked up.
        on_dev: scores by set; those of test sets that the ledger does not hold are left out.
    """
    on_test = ledger.scores_of(bundle.model_key)
    scores = {name: s for name, s in on_test.items() if "weighted_f1" in s}
    scores |= {name: s for name, s in on_dev.items() if " dev, " in name or name == "against_float32"}
    voices = {name.removesuffix(", voices"): s for name, s in on_test.items() if name.endswith(", voices")}
    return {"scores": scores, "voices": voices, "headline": headline(scores)}


def _parity(path: Path, bundle: Bundle) -> dict[str, Any]:
    """The rows of a parity chain, reduced to what a card shows, and its reference. One row must be of this bundle."""
    try:
        stored = json.loads(path.read_text())
        steps, about = stored["steps"], stored["about"]
        keys = {step["key"] for step in steps}
        rows = [{column: step[column] for column in PARITY_COLUMNS} for step in steps]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a result of python -m export.verify --save ({error})") from None
    if bundle.key not in keys:
        raise InputError(f"{path} is of other bundles than {bundle.path}; run python -m export.verify on this bundle")
    return {"parity": rows, "parity_about": about}


def about_checkpoint(about: dict[str, Any], config: ModelConfig, name: str, precision: str) -> dict[str, Any]:
    """The descriptive fields of the manifest for a checkpoint. The licence follows from all its training corpora."""
    if "temperatures" not in about:
        raise InputError("the checkpoint has no temperatures yet; run: python -m training.evaluate CHECKPOINT")
    names = about.get("corpora", ["unknown"])
    sources = {"text": encoders.SOURCES["text"], "audio": encoders.SOURCES[config.audio_encoder]}
    return {
        "name": name,
        "precision": precision,
        "description": "HBAF (arXiv 2503.06405), completed where the paper is silent: docs/model.md",
        "temperatures": about["temperatures"],
        "encoders": {
            kind: {"model": s.model, "licence": s.licence, "packages": list(s.packages), "sha256": s.sha256}
            for kind, s in sources.items()
        },
        "corpora": names,
        "data": data_of(names),
        "licence": licence_of(names),
        "limits": LIMITS,
        "training": about["train"],
    }


def licence_of(names: Sequence[str]) -> dict[str, Any]:
    """The strictest licence among the corpora that the weights were trained on, in this run or earlier.

    >>> licence_of(["dailytalk", "emogator"])["commercial"], licence_of(["emogator", "tess", "manifest"])["id"]
    (True, 'CC-BY-NC-SA-4.0')
    """
    if set(names) <= set(OPEN_CORPORA):
        return OPEN
    return NON_COMMERCIAL if {"ravdess", "ravdess-8", "tess", "nemo", "emospeech"} & set(names) else OWN


def data_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """The training corpora as the manifest lists them."""
    own = {"licence": "not known to this project", "use": "training", "open": False}
    return [DATA.get(name.removesuffix("-8"), {"name": name, **own}) for name in names]


def main(
    bundle: Path,
    /,
    out: Path,
    name: str | None = None,
    parity: Path | None = None,
    sign: Path | None = None,
    zip: bool = False,
    json_output: bool = False,
) -> None:
    """Finish a bundle.

    Args:
        bundle: of export.to_onnx, float16 or quantize.
        out: folder of the finished bundle.
        name: replaces the bundle's name.
        parity: JSON of export.verify --save, for the model card.
        sign: Ed25519 private key, PEM (hbaf_edge/sign.py).
        zip: also write OUT.hbaf, the bundle as one file.
    """
    path = finish_bundle(bundle, out, name, parity, sign, zip)
    emit({"out": str(path)}, json_output, str(path))


if __name__ == "__main__":
    cli(main)
