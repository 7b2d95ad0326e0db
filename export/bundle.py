"""The bundle that ships: scores of every precision in its card, a signature, and one `.hbaf` file.

    python -m export.bundle runs/mine/int8 --parity runs/mine/parity.json --sign private.pem --zip --out runs/bundle

A bundle is written beside its place, loaded once by the runtime's own verifying loader, then moved there whole.
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
from export.place import check_place, replacing, workplace
from hbaf_edge import __version__
from hbaf_edge.audio import SAMPLE_RATE
from hbaf_edge.bundle import FORMAT, GRAPHS, Bundle, load_bundle
from hbaf_edge.card import NOTICE
from hbaf_edge.errors import InputError
from hbaf_edge.runtime import HBAFRuntime
from hbaf_edge.sign import SIGNATURE, sign
from training import encoders
from training.command import cli
from training.config import ModelConfig

LICENCE_FILE = "LICENSE-WEIGHTS"
NON_COMMERCIAL = {
    "id": "CC-BY-NC-SA-4.0",
    "commercial": False,
    "why": "trained on RAVDESS and TESS, whose licences forbid commercial use",
}
TERMS = {
    "CC-BY-NC-SA-4.0": "Creative Commons\nAttribution-NonCommercial-ShareAlike 4.0 International (CC BY-NC-SA 4.0):\n"
    "https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode"
}
OPEN = {
    "id": "CC-BY-SA-4.0",
    "commercial": True,
    "why": "trained on DailyTalk (CC BY-SA 4.0), EmoGator (Apache-2.0) and AMI (CC BY 4.0) alone",
}
OWN = {
    "id": "LicenseRef-own-data",
    "commercial": False,
    "why": "trained on data whose licence this project does not know; whoever owns them decides (see data)",
}
OPEN_CORPORA = ("dailytalk", "emogator", "plain")
DATA: dict[str, dict[str, Any]] = {
    "meld": {"name": "MELD (transcripts)", "licence": "GPL-3.0", "use": "text training, official split", "open": False},
    "dailytalk": {"name": "DailyTalk (transcripts)", "licence": "CC-BY-SA-4.0", "use": "text training", "open": True},
    "ravdess": {"name": "RAVDESS actors 1-14", "licence": "CC-BY-NC-SA-4.0", "use": "audio training", "open": False},
    "tess": {"name": "TESS", "licence": "CC-BY-NC-ND-4.0", "use": "audio training", "open": False},
    "emogator": {"name": "EmoGator", "licence": "Apache-2.0", "use": "audio training (vocal bursts)", "open": True},
    "plain": {
        "name": "AMI (training meetings), synthetic voices and noise",
        "licence": "CC-BY-4.0",
        "use": "audio that says nothing: partner of any text, and taken for neutral by itself",
        "open": True,
    },
}
# Pairs of words and clips of one label make the level of such a score mean nothing, and its changes much.
PRECISIONS = "Every precision against PyTorch in float32 (on one set of conversations: compare the rows)"
LIMITS = [
    "English words; acted audio: no natural audio-text pairs were at hand, so text and clips of equal label from "
    "different corpora were paired in training, and no score on such pairs is claimed.",
    "The voice was learned from acted speech and is unreliable on natural speech (python -m benchmarks.natural shows "
    "how much): prefer the words where there are any.",
    "Not evaluated on children, on people with speech impairments, or on any language but English.",
    "An estimate of the emotion expressed, not of what a person feels; not for work or school (EU AI Act, Art. 5) "
    "except for medical or safety reasons.",
]


def write_bundle(
    onnx_folder: Path, out: Path, config: ModelConfig, about: dict[str, Any], key: Path | None = None
) -> Path:
    """Put a bundle together from the four graphs of `onnx_folder`, replacing what is there once the new one has loaded.

    `about` holds the manifest's fields that describe it: name, precision, temperatures, licence, data, scores …;
    with `key`, an Ed25519 private key, it is signed.
    """
    graphs = {graph: onnx_folder / f"{graph}.onnx" for graph in GRAPHS}
    entries = {graph: metadata.entries_of(onnx.load(path)) for graph, path in graphs.items()}
    metadata.check_one_model(entries, config.labels, about["precision"])
    with replacing(out) as work:
        _fill(work, graphs, config, about, key)
        HBAFRuntime(work, threads=1).predict(text="A bundle that cannot do this is none.")
    return out


def _fill(work: Path, graphs: dict[str, Path], config: ModelConfig, about: dict[str, Any], key: Path | None) -> None:
    """Graphs, tokeniser, licence, card, manifest and signature."""
    onnx_folder = graphs["text"].parent
    for path in graphs.values():
        shutil.copy(path, work)
    tokenizer = onnx_folder / "tokenizer.json"
    shutil.copy(tokenizer if tokenizer.exists() else encoders.folder("text") / "tokenizer.json", work)
    if not about["licence"].get("commercial"):
        (work / LICENCE_FILE).write_text(_licence_text(about))
    (work / "MODEL_CARD.md").write_text(model_card(about, config.labels))
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
        "graphs": {graph: _signature(work / f"{graph}.onnx") for graph in GRAPHS},
    }
    contents = {path.name: path.read_bytes() for path in sorted(work.iterdir())}
    manifest["files"] = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    if key is not None:
        (work / SIGNATURE).write_bytes(sign((work / "manifest.json").read_bytes(), key))


def rewritten(
    bundle: Bundle, graphs: Mapping[str, bytes], out: Path, about: dict[str, Any], key: Path | None = None
) -> Path:
    """A bundle again with these graphs, and with `about` in place of what its manifest said of them."""
    with workplace(out) as folder:
        for graph, content in graphs.items():
            (folder / f"{graph}.onnx").write_bytes(content)
        (folder / "tokenizer.json").write_bytes(bundle.files["tokenizer.json"])
        config = ModelConfig.from_json(bundle.manifest["model"])
        return write_bundle(folder, out, config, {**bundle.manifest, **about}, key)


def zip_bundle(bundle: Path, target: Path) -> Path:
    """The folder as one `.hbaf` file; the zip too is verified by loading it, and replaces an older one whole."""
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


def _licence_text(about: dict[str, Any]) -> str:
    licence = about["licence"]
    terms = TERMS.get(licence["id"], f"{licence['id']}.")
    lines = [
        f"The weights in this folder ({about['name']}) are licensed under {terms}",
        "",
        f"They may NOT be used commercially: {licence['why']}.",
        "The code of hbaf-edge is Apache-2.0; a model trained on other data is free of this restriction.",
        "",
        "Trained on:",
        *(f"- {d['name']}: {d['licence']} ({d['use']})" for d in about.get("data", [])),
        "",
        "Built on:",
        *(f"- {e['model']}: {e['licence']}" for e in about.get("encoders", {}).values()),
    ]
    return "\n".join(lines) + "\n"


def model_card(about: dict[str, Any], labels: tuple[str, ...]) -> str:
    """Markdown from the manifest's descriptive fields.

    >>> about = {"name": "m", "precision": "float32", "licence": {"id": "MIT", "commercial": True, "why": "example"}}
    >>> print(model_card(about, ("joy", "fear")).splitlines()[0])
    # Model card: m
    """
    licence = about["licence"]
    use = "commercial use is allowed" if licence.get("commercial") else "**not for commercial use**"
    parts = [
        f"# Model card: {about['name']}",
        f"{about.get('description', 'HBAF')}. Labels: {', '.join(labels)}. Weights: {about['precision']}.\n\n{NOTICE}",
        f"## Licence of the weights\n{licence['id']}, {use}: {licence['why']}.",
        _section("Trained on", [f"{d['name']}: {d['licence']}; {d['use']}" for d in about.get("data", [])]),
        _section(
            "Built on", [f"{kind}: {e['model']} ({e['licence']})" for kind, e in about.get("encoders", {}).items()]
        ),
        _section("Scores, through the runtime that ships", _scores(about.get("scores", {}))),
        _section(PRECISIONS, [_step(s) for s in about.get("parity", [])]),
        _section("Limits", about.get("limits", [])),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", *(f"- {line}" for line in lines)]) if lines else ""


def _step(step: dict[str, Any]) -> str:
    """One precision of a parity chain."""
    f1 = "" if step["weighted_f1"] is None else f", weighted F1 {step['weighted_f1']:.4f} ({-step['f1_drop']:+.4f})"
    return (
        f"{step['name']}: {step['flip_rate']:.2%} of the labels differ, cosine of the fused vector "
        f"{step['cosine_mean']:.4f}{f1}, {step['megabytes']:.1f} MB"
        + (f"; **breaks its limits**: {'; '.join(step['broken'])}" if step["broken"] else "")
    )


def _scores(scores: dict[str, Any]) -> list[str]:
    """A line per held-out set with its recalls, and the distance from float32."""
    lines = []
    for name, s in scores.items():
        if "weighted_f1" not in s:
            lines.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in s.items()))
            continue
        recalls = ", ".join(f"{label} {value:.2f}" for label, value in s["recall"].items())
        lines.append(
            f"{name}, {s['utterances']} utterances: weighted F1 {s['weighted_f1']:.3f}, macro F1 {s['macro_f1']:.3f}, "
            f"UAR {s['uar']:.3f}, ECE {s['ece']:.3f}; recall {recalls}"
        )
    return lines


def finished(source: Path, out: Path, name: str | None = None, parity: Path | None = None, key: Path | None = None,
             zipped: bool = False) -> Path:  # fmt: skip
    """A bundle again, with its card complete and signed; the folder's path, or the zip's."""
    zip_path = out.with_name(out.resolve().name + ".hbaf")
    if zipped and zip_path.is_dir():
        raise InputError(f"{zip_path} is a folder, and the zip would stand there; nothing was replaced: move it away")
    check_place(out)  # the bundle may be there, put aside by a run that was killed
    bundle = load_bundle(source)
    about: dict[str, Any] = {"name": name} if name else {}
    if parity is not None:
        about["parity"] = _parity(parity, bundle)
    rewritten(bundle, {graph: bundle.graph(graph) for graph in GRAPHS}, out, about, key)
    return zip_bundle(out, zip_path) if zipped else out


def _parity(path: Path, bundle: Bundle) -> list[dict[str, Any]]:
    """The rows of a parity chain that a card shows; one of them must be of this very bundle."""
    shown = ("name", "flip_rate", "cosine_mean", "weighted_f1", "f1_drop", "megabytes", "broken")
    try:
        steps = json.loads(path.read_text())["steps"]
        known = {step["key"] for step in steps}
        rows = [{key: step[key] for key in shown} for step in steps]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result of python -m export.verify --save ({error})") from None
    if bundle.key not in known:
        raise InputError(f"{path} is of other bundles than {bundle.path}; run python -m export.verify on it")
    return rows


def about_checkpoint(about: dict[str, Any], config: ModelConfig, name: str, precision: str) -> dict[str, Any]:
    """The manifest's descriptive part for a checkpoint: its licence follows from every corpus its weights have seen."""
    if "temperatures" not in about:
        raise InputError("the checkpoint has no temperatures yet; run: python -m training.evaluate CHECKPOINT")
    seen = about.get("corpora", ["unknown"])
    used = {"text": encoders.SOURCES["text"], "audio": encoders.SOURCES[config.audio_encoder]}
    return {
        "name": name,
        "precision": precision,
        "description": "HBAF (arXiv 2503.06405), completed where the paper is silent: training/MODEL.md",
        "temperatures": about["temperatures"],
        "encoders": {
            kind: {"model": s.model, "licence": s.licence, "packages": list(s.packages), "sha256": s.sha256}
            for kind, s in used.items()
        },
        "corpora": seen,
        "data": data_of(seen),
        "licence": licence_of(seen),
        "limits": LIMITS,
        "training": about["train"],
    }


def licence_of(seen: Sequence[str]) -> dict[str, Any]:
    """The strictest terms of the corpora that the weights learned from, in this run or before it.

    >>> licence_of(["dailytalk", "emogator"])["commercial"], licence_of(["emogator", "tess", "manifest"])["id"]
    (True, 'CC-BY-NC-SA-4.0')
    """
    if set(seen) <= set(OPEN_CORPORA):
        return OPEN
    return NON_COMMERCIAL if {"ravdess", "ravdess-8", "tess"} & set(seen) else OWN


def data_of(seen: Sequence[str]) -> list[dict[str, Any]]:
    """The manifest's list of training data."""
    own = {"licence": "not known to this project", "use": "training", "open": False}
    return [DATA.get(name.removesuffix("-8"), {"name": name, **own}) for name in seen]


def main(
    bundle: Path,
    /,
    out: Path,
    name: str | None = None,
    parity: Path | None = None,
    sign: Path | None = None,
    zip: bool = False,
) -> None:
    """Bundle.

    Args:
        bundle: of export.to_onnx, half or quantize.
        out: the finished bundle's folder.
        name: in place of the bundle's own.
        parity: JSON of export.verify --save, for the model card.
        sign: Ed25519 private key, PEM (hbaf_edge/sign.py).
        zip: write one .hbaf file beside the folder as well.
    """
    print(finished(bundle, out, name, parity, sign, zip))


if __name__ == "__main__":
    cli(main)
