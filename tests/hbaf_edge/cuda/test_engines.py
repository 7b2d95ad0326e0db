"""Engines: built without a GPU by TensorRT-RTX, cached by all they depend on, and never taken for whole when not."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import onnx
import pytest

from export.half import to_half
from export.int8 import quantised, with_int8_weights
from export.qdq import Recipe
from hbaf_edge.backends.cuda import engines
from hbaf_edge.backends.cuda.engines import Reach, cache_folder, engine, read, shapes, write
from hbaf_edge.bundle import GRAPHS, load_bundle
from hbaf_edge.errors import BackendError
from tests.kernels.made import ROOT

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
SMALL = Reach(batch=(1, 1, 2), mel_frames=(8, 40, 80), tokens=(1, 8, 16))


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
        bundle = load_bundle(to_half(bundle, tmp_path / "bundle"))
    if precision == "int8-tensorrt":
        request.getfixturevalue("small_counts")
        calibrated = request.getfixturevalue("calibrated")
        bundle = load_bundle(quantised(bundle, calibrated, Recipe("tensorrt"), tmp_path / "bundle"))
    assert len(engine(bundle, graph, "rtx", "8.6", SMALL, tmp_path / "cache")) > 1000


@pytest.mark.tensorrt
@rtx
def test_an_engine_is_built_once_and_again_when_something_changes(bundle, tmp_path, monkeypatch, caplog):
    built, build, cache = [], engines.build, tmp_path / "cache"
    monkeypatch.setattr(engines, "build", lambda *given: (built.append(given), build(*given))[1])
    first = engine(bundle, "dialogue", "rtx", "8.6", SMALL, cache)
    assert engine(bundle, "dialogue", "rtx", "8.6", SMALL, cache) == first
    assert len(built) == 1
    engine(bundle, "dialogue", "rtx", "8.6", Reach(batch=(1, 2, 4)), cache)
    assert caplog.text.count("building the dialogue engine for 8.6 with tensorrt_rtx") == 2
    (path,) = (p for p in cache.glob("dialogue-*.engine") if read(p) == first)
    path.write_bytes(path.read_bytes()[:-7])
    assert len(engine(bundle, "dialogue", "rtx", "8.6", SMALL, cache)) > 1000
    assert "is damaged" in caplog.text
    assert len(built) == 3
    assert not list(cache.glob(".*"))


@pytest.mark.tensorrt
@rtx
def test_what_the_library_cannot_do_is_said_in_its_words(bundle, tmp_path):
    trt = engines.library("rtx")
    with pytest.raises(BackendError, match=r"knows no capability '9.9'; it knows .*8\.6"):
        engine(bundle, "dialogue", "rtx", "9.9", SMALL, tmp_path)
    with pytest.raises(BackendError, match="cannot parse the graph"):
        engines.build(trt, b"no onnx at all", {})
    backwards = Reach(batch=(4, 2, 1))
    with pytest.raises(BackendError, match=r"cannot build the engine: .+"):
        engine(bundle, "dialogue", "rtx", "8.6", backwards, tmp_path)
    assert not list(tmp_path.glob("*.engine"))


def test_a_cpu_bundle_and_a_missing_library_are_refused(bundle, tmp_path, request, monkeypatch):
    request.getfixturevalue("small_counts")
    small = load_bundle(with_int8_weights(bundle, tmp_path / "small"))
    with pytest.raises(BackendError, match=r"has int8-weights graphs, made for CPUs; engines are built from float32"):
        engine(small, "text", "rtx", "8.6", SMALL, tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"tensorrt cannot be imported .*hbaf-edge\[tensorrt\].*JetPack"):
        engine(bundle, "text", "tensorrt", None, SMALL, tmp_path)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"GPU cannot be reached .*name a compute capability"):
        engines.gpu_here()
    with pytest.raises(BackendError, match="there are 'tensorrt', 'rtx'"):
        engines.library("cuda")


def test_with_tensorrt_a_gate_is_the_plugin(bundle, tmp_path, monkeypatch):
    """Registered before an engine is built or handed out to be loaded; the cache tells engines with it apart."""
    trt, registered, built = SimpleNamespace(__name__="tensorrt", __version__="10.3"), [], []
    monkeypatch.setattr(engines, "library", lambda name: trt)
    monkeypatch.setattr(engines, "gpu_here", lambda: "Card 9.0")
    monkeypatch.setattr(engines, "register", lambda *given: registered.append(given))
    monkeypatch.setattr(engines, "build", lambda trt, graph, *_: built.append(graph) or b"engine")
    for _ in range(2):
        assert engine(bundle, "utterance", cache=tmp_path) == b"engine"
    assert registered == [(trt, 2, 16, 5, engines.CUBINS)] * 2
    (graph,) = map(onnx.load_from_string, built)
    assert not graph.functions
    assert {a.s for n in graph.graph.node if n.domain == "hbaf_edge" for a in n.attribute} == {b"hbaf_edge"}
    assert engine(bundle, "audio", cache=tmp_path) == b"engine"
    assert len(registered) == 2, "an encoder has no gate"
    assert built[-1] == bundle.graph("audio")
    monkeypatch.setattr(engines, "IDENTITY", "hbaf_edge::BimodalAttentionGate 2")
    engine(bundle, "utterance", cache=tmp_path)
    assert len(built) == 3


def test_shapes_follow_the_manifest(bundle):
    found = shapes(bundle, "utterance", SMALL)
    stack = bundle.manifest["stack"]
    assert found["frames"][2] == (2, stack * -(-80 // (2 * stack)), 16)
    assert found["visible"] == ((1, 5, 2), (1, 5, 2), (2, 5, 2))
    assert found["tokens"][0] == (1, 1, 24)
    assert set(found) == set(bundle.manifest["graphs"]["utterance"]["inputs"])


@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: x + b"x", lambda x: b"?" + x[1:], lambda x: b""])
def test_a_damaged_file_is_deleted(tmp_path, damage, caplog):
    path, content = tmp_path / "a.engine", b"engine" * 100
    write(path, content)
    assert read(path) == content
    path.write_bytes(damage(path.read_bytes()))
    assert read(path) is None
    assert "damaged" in caplog.text
    assert not path.exists()
    assert read(path) is None  # and nothing to say of what is not there


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "a.engine", b"x")
    assert not list(tmp_path.iterdir())


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "engines"
    monkeypatch.delenv("HBAF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "hbaf-edge" / "engines"


@pytest.mark.tensorrt
@rtx
@pytest.mark.slow
def test_two_processes_at_once_do_not_collide(tiny, tmp_path):
    command = [sys.executable, "-m", "export.engine", str(tiny.bundle), "--library", "rtx", "--capability", "8.6",
               "--batch", "2", "--cache", str(tmp_path)]  # fmt: skip
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [json.loads(p.communicate()[0].splitlines()[-1]) for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert all(len(one["engines"]) == 4 for one in said)
    assert all(read(path) for path in tmp_path.glob("*.engine"))
    assert len(list(tmp_path.glob("*.engine"))) == 4
