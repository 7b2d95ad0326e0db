"""Engines: built by TensorRT-RTX without a GPU, cached by everything they depend on, rebuilt when damaged."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import onnx
import pytest

from export.float16 import to_float16
from export.int8 import bundle_with_int8_weights, quantise_bundle
from export.qdq import Recipe
from hbaf_edge.backends.cuda import engines
from hbaf_edge.backends.cuda.engines import (
    OptimizationProfile,
    cache_folder,
    input_shapes,
    load_or_build_engine,
    read_engine,
    write_engine,
)
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.errors import BackendError
from tests.kernels.random_inputs import ROOT

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
SMALL = OptimizationProfile(batch=(1, 1, 2), mel_frames=(8, 40, 80), tokens=(1, 8, 16))


@pytest.fixture
def bundle(tiny):
    return load_bundle(tiny.bundle)


@pytest.mark.tensorrt
@rtx
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "precision", ["float32", *(pytest.param(p, marks=pytest.mark.slow) for p in ("float16", "int8-tensorrt"))]
)
def test_every_graph_builds_in_every_precision(tiny, bundle, precision, graph, tmp_path, request):
    if precision == "float16":
        bundle = load_bundle(to_float16(bundle, tmp_path / "bundle"))
    if precision == "int8-tensorrt":
        request.getfixturevalue("quantise_small_matrices")
        calibrated = request.getfixturevalue("calibrated")
        bundle = load_bundle(quantise_bundle(bundle, calibrated, Recipe("tensorrt"), tmp_path / "bundle"))
    assert len(load_or_build_engine(bundle, graph, "rtx", "8.6", SMALL, tmp_path / "cache")) > 1000


@pytest.mark.tensorrt
@rtx
def test_an_engine_is_built_once_and_again_when_something_changes(bundle, tmp_path, monkeypatch, caplog):
    built, build_engine, cache = [], engines.build_engine, tmp_path / "cache"
    monkeypatch.setattr(engines, "build_engine", lambda *args: (built.append(args), build_engine(*args))[1])
    first = load_or_build_engine(bundle, "dialogue", "rtx", "8.6", SMALL, cache)
    assert load_or_build_engine(bundle, "dialogue", "rtx", "8.6", SMALL, cache) == first
    assert len(built) == 1
    load_or_build_engine(bundle, "dialogue", "rtx", "8.6", OptimizationProfile(batch=(1, 2, 4)), cache)
    assert caplog.text.count("building the dialogue engine for 8.6 with tensorrt_rtx") == 2
    (path,) = (p for p in cache.glob("dialogue-*.engine") if read_engine(p) == first)
    path.write_bytes(path.read_bytes()[:-7])
    assert len(load_or_build_engine(bundle, "dialogue", "rtx", "8.6", SMALL, cache)) > 1000
    assert "is damaged" in caplog.text
    assert len(built) == 3
    assert not list(cache.glob(".*"))


@pytest.mark.tensorrt
@rtx
def test_errors_contain_the_librarys_reason(bundle, tmp_path):
    trt = engines.import_library("rtx")
    with pytest.raises(BackendError, match=r"does not support capability '9.9'; valid ones are .*8\.6"):
        load_or_build_engine(bundle, "dialogue", "rtx", "9.9", SMALL, tmp_path)
    with pytest.raises(BackendError, match="cannot parse the graph"):
        engines.build_engine(trt, b"no onnx at all", {})
    backwards = OptimizationProfile(batch=(4, 2, 1))
    with pytest.raises(BackendError, match=r"cannot build the engine: .+"):
        load_or_build_engine(bundle, "dialogue", "rtx", "8.6", backwards, tmp_path)
    assert not list(tmp_path.glob("*.engine"))


def test_a_cpu_bundle_and_a_missing_library_are_errors(bundle, tmp_path, request, monkeypatch):
    request.getfixturevalue("quantise_small_matrices")
    small = load_bundle(bundle_with_int8_weights(bundle, tmp_path / "small"))
    with pytest.raises(BackendError, match=r"has int8-weights graphs, made for CPUs; engines are built from float32"):
        load_or_build_engine(small, "text", "rtx", "8.6", SMALL, tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"tensorrt cannot be imported .*hbaf-edge\[tensorrt\].*JetPack"):
        load_or_build_engine(bundle, "text", "tensorrt", None, SMALL, tmp_path)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"GPU cannot be reached .*name a compute capability"):
        engines.describe_gpu()
    with pytest.raises(BackendError, match="valid ones are 'tensorrt', 'rtx'"):
        engines.import_library("cuda")


def test_tensorrt_engines_use_the_plugin(bundle, tmp_path, monkeypatch):
    """It is registered before an engine is built or returned from the cache, and is part of the cache key."""
    trt, registered, built = SimpleNamespace(__name__="tensorrt", __version__="10.3"), [], []
    monkeypatch.setattr(engines, "import_library", lambda name: trt)
    monkeypatch.setattr(engines, "describe_gpu", lambda: "Card 9.0")
    monkeypatch.setattr(engines, "register", lambda *arguments: registered.append(arguments))
    monkeypatch.setattr(engines, "build_engine", lambda trt, graph, *_: built.append(graph) or b"engine")
    for _ in range(2):
        assert load_or_build_engine(bundle, "utterance", cache=tmp_path) == b"engine"
    assert registered == [(trt, 2, 16, 5, engines.CUBINS)] * 2
    (graph,) = map(onnx.load_from_string, built)
    assert not graph.functions
    assert {a.s for n in graph.graph.node if n.domain == "hbaf_edge" for a in n.attribute} == {b"hbaf_edge"}
    assert load_or_build_engine(bundle, "audio", cache=tmp_path) == b"engine"
    assert len(registered) == 2, "encoders have no gate"
    assert built[-1] == bundle.graph("audio")
    monkeypatch.setattr(engines, "IDENTITY", "hbaf_edge::BimodalAttentionGate 2")
    load_or_build_engine(bundle, "utterance", cache=tmp_path)
    assert len(built) == 3


def test_shapes_follow_the_manifest(bundle):
    shapes = input_shapes(bundle, "utterance", SMALL)
    stack = bundle.manifest["stack"]
    assert shapes["frames"][2] == (2, stack * -(-80 // (2 * stack)), 16)
    assert shapes["visible"] == ((1, 5, 2), (1, 5, 2), (2, 5, 2))
    assert shapes["tokens"][0] == (1, 1, 24)
    assert set(shapes) == set(bundle.manifest["graphs"]["utterance"]["inputs"])


@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: x + b"x", lambda x: b"?" + x[1:], lambda x: b""])
def test_a_damaged_engine_is_deleted(tmp_path, damage, caplog):
    path, content = tmp_path / "a.engine", b"engine" * 100
    write_engine(path, content)
    assert read_engine(path) == content
    path.write_bytes(damage(path.read_bytes()))
    assert read_engine(path) is None
    assert "damaged" in caplog.text
    assert not path.exists()
    assert read_engine(path) is None  # a missing file gives no warning


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_engine(tmp_path / "a.engine", b"x")
    assert not list(tmp_path.iterdir())


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "engines"
    monkeypatch.delenv("HBAF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "hbaf-edge" / "engines"


@pytest.mark.tensorrt
@rtx
@pytest.mark.slow
def test_two_processes_can_build_at_the_same_time(tiny, tmp_path):
    command = [sys.executable, "-m", "export.engine", str(tiny.bundle), "--library", "rtx", "--capability", "8.6",
               "--batch", "2", "--cache", str(tmp_path), "--json"]  # fmt: skip
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [json.loads(p.communicate()[0].splitlines()[-1]) for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert all(len(one["engines"]) == 4 for one in results)
    assert all(read_engine(path) for path in tmp_path.glob("*.engine"))
    assert len(list(tmp_path.glob("*.engine"))) == 4
