"""Our GPU back ends against ONNX Runtime's, turn by turn, on a host that interprets the shipped kernels."""

import copy
import os

import numpy as np
import pytest

from hbaf_edge import HBAFRuntime
from hbaf_edge.backends.cuda.dialogue import DialogueOnGpu, DialogueScope, split
from hbaf_edge.backends.cuda.engine_backend import EngineBackend
from hbaf_edge.backends.cuda.weights import dialogue_weights
from hbaf_edge.backends.onnxruntime import OrtBackend
from hbaf_edge.backends.open import open_native
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import BackendError
from kernels.shipped import Sizes
from tests.conftest import speech
from tests.hbaf_edge.cuda.host import HostDevice
from tests.kernels.test_build import compiling

RATE = 16_000
SCRIPT = [("anna", 0.9, "hello there"), ("bob", None, "i am fine"), ("anna", 0.5, None), (None, 1.4, "no way"),
          ("bob", 0.3, "what a day"), ("carla", None, "yes"), ("anna", 0.7, "well"), ("bob", 0.6, None)]  # fmt: skip


@pytest.fixture(scope="module")
def cubins(tiny, tmp_path_factory):
    """The kernels of the tiny model's sizes, for one architecture."""
    out = tmp_path_factory.mktemp("kernels") / "cubins"
    done = compiling(f"from kernels.build import *; build(Path({str(out)!r}), Sizes(5, 2, 16), (87,))")
    assert done.returncode == 0, done.stderr[-2000:]
    return out


class ByOrt:
    """An engine's place taken by the graph it is built from."""

    def __init__(self, device, bundle, name):
        import onnxruntime as ort

        self.device, self.session = device, ort.InferenceSession(bundle.graph(name), providers=["CPUExecutionProvider"])
        self.shapes = {}

    def outputs(self, shapes):
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": bool}
        given = {i.name: np.zeros(shapes[i.name], kinds[i.type]) for i in self.session.get_inputs()}
        found = self.session.run(None, given)
        self.shapes = {n: (x.shape, x.dtype) for n, x in given.items()}
        return {o.name: x.shape for o, x in zip(self.session.get_outputs(), found)}

    def run(self, addresses):
        given = {n: self.device.array(addresses[n], *of).copy() for n, of in self.shapes.items()}
        assert all(address % 256 == 0 for address in addresses.values()), "TensorRT takes no other"
        for output, value in zip(self.session.get_outputs(), self.session.run(None, given)):
            self.device.array(addresses[output.name], value.shape, np.float32)[...] = value


def opened(tiny, cubins, provider, capacity=3, dtype="float32"):
    """A runtime of the tiny model on the host device, and the device."""
    bundle, device = load_bundle(tiny.bundle), HostDevice(Sizes(5, 2, 16))
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    scope = DialogueScope(device, dialogue_weights(bundle), dtype, capacity, cubins)
    if provider == "cuda":
        backend = OrtBackend(bundle, "cpu", 1, DialogueOnGpu(scope, device))
    else:
        engines = {name: ByOrt(device, bundle, name) for name in ("audio", "text", "utterance")}
        backend = EngineBackend(bundle, 1, scope, device, engines, cubins)
    runtime.engine.backend = backend
    return runtime, device, scope


def say(runtime, chat, speaker, seconds, text, seed=0):
    audio = None if seconds is None else speech(seconds, seed=seed)
    rate = None if seconds is None else RATE
    return runtime.predict(audio, sample_rate=rate, text=text, speaker=speaker, conversation=chat)


def close(found, expected, atol=2e-5):
    np.testing.assert_allclose(list(found.probabilities.values()), list(expected.probabilities.values()), atol=atol)
    np.testing.assert_allclose(found.embedding, expected.embedding, atol=20 * atol)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_turn_by_turn_it_is_onnx_runtimes_result(tiny, cubins, provider):
    """More turns than the window holds; one copy in and one out a turn, and as many launches as are allowed."""
    runtime, device, scope = opened(tiny, cubins, provider)
    plain = HBAFRuntime(tiny.bundle, threads=1)
    ours, theirs = runtime.conversation(), plain.conversation()
    for turn, said in enumerate(SCRIPT):
        before, launched = list(device.copies), len(device.launches)
        close(say(runtime, ours, *said, seed=turn), say(plain, theirs, *said, seed=turn))
        assert [a - b for a, b in zip(device.copies, before)] == [1, 1]
        names = device.launches[launched:]
        assert len(names) - names.count("keep") == 3 * scope.layers + 1
        assert names.count("gate_step") == scope.layers, "one launch of the gate a layer"
    np.testing.assert_allclose(ours.memory.keys, theirs.memory.keys, atol=1e-4)
    np.testing.assert_allclose(ours.memory.context_values, theirs.memory.context_values, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_more_conversations_than_rows_take_turns(tiny, cubins, provider):
    """Five at once and one after the other on two rows; each is what it is alone."""
    runtime, *_ = opened(tiny, cubins, provider, capacity=2)
    plain = HBAFRuntime(tiny.bundle, threads=1)
    ours, theirs = ([r.conversation() for _ in range(5)] for r in (runtime, plain))
    for turn in range(3):
        given = [
            {"audio": speech(0.3 + 0.2 * (i % 2), seed=i + turn), "sample_rate": RATE, "text": f"turn {turn}"}
            for i in range(5)
        ]
        found = runtime.predict_batch([{**g, "conversation": c} for g, c in zip(given, ours)])
        expected = plain.predict_batch([{**g, "conversation": c} for g, c in zip(given, theirs)])
        for a, b in zip(found, expected):
            close(a, b)
        close(say(runtime, ours[turn], *SCRIPT[1]), say(plain, theirs[turn], *SCRIPT[1]))


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_what_else_happens_to_a_conversation_is_followed(tiny, cubins, provider, tmp_path):
    """Tried turns, revised ones, forks, resets and files: rows follow the conversation, whatever is done to it."""
    runtime, *_ = opened(tiny, cubins, provider)
    plain = HBAFRuntime(tiny.bundle, threads=1)
    both = [(r, r.conversation()) for r in (runtime, plain)]

    def each(what):
        a, b = (what(r, c) for r, c in both)
        if a is not None:
            close(a, b)

    def live(r, c):
        turn = r.begin(speaker="anna", conversation=c)
        turn.feed(speech(0.8), RATE)
        turn.provisional("no")
        turn.finish("no")
        return turn.revise("no, never")

    for turn in range(6):
        each(lambda r, c, turn=turn: say(r, c, *SCRIPT[turn]))
    each(live)
    forks = [(r, c.fork()) for r, c in both]
    each(lambda r, c: say(r, c, *SCRIPT[3]))
    close(*(say(r, c, *SCRIPT[2]) for r, c in forks))
    for _, c in both:
        c.save(tmp_path / "chat")
        c.reset()
    each(lambda r, c: say(r, c, *SCRIPT[0]))
    close(*(say(r, r.load_conversation(tmp_path / "chat"), *SCRIPT[4]) for r, _ in both))


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_that_fails_loses_no_turn(tiny, cubins, provider):
    runtime, device, _ = opened(tiny, cubins, provider)
    plain = HBAFRuntime(tiny.bundle, threads=1)
    ours, theirs = runtime.conversation(), plain.conversation()
    for said in SCRIPT[:3]:
        say(runtime, ours, *said), say(plain, theirs, *said)
    before, device.broken = copy.deepcopy(ours.memory.keys), True
    with pytest.raises(BackendError, match="in the middle of a turn; it was not committed"):
        say(runtime, ours, *SCRIPT[3])
    assert ours.turn == 3
    assert np.array_equal(ours.memory.keys, before)
    close(say(plain, ours.fork(), *SCRIPT[3]), say(plain, theirs.fork(), *SCRIPT[3]))  # another back end goes on
    device.broken = False
    close(say(runtime, ours, *SCRIPT[3]), say(plain, theirs, *SCRIPT[3]))


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_row_taken_over_brings_nothing_along(tiny, cubins, provider):
    """Not even what is not a number: masked, it may still spoil a sum, and does in an INT8 graph."""
    runtime, device, scope = opened(tiny, cubins, provider, capacity=1)
    plain = HBAFRuntime(tiny.bundle, threads=1)
    for said in SCRIPT[:2]:
        say(runtime, runtime.conversation(), *said)
    rings = [getattr(x, "_rings", None) for x in (scope, runtime.engine.backend)]  # which nothing else shows
    held = [device.array(r.at[n], (r.at["step_row"],), np.float32) for r in rings if r for n in ("keys", "values")]
    for ring in held:
        ring[...] = np.nan
    ours, theirs = runtime.conversation(), plain.conversation()
    for said in SCRIPT[:2]:
        close(say(runtime, ours, *said), say(plain, theirs, *said))
    assert all(np.isfinite(ring).all() for ring in held)


def test_what_half_precision_cannot_hold_is_kept_at_its_limit():
    keys, values = split(np.full((2, 1, 2, 2, 4), np.inf, np.float16))
    assert np.abs(keys).max() == np.abs(values).max() == 65504


def test_more_labels_than_the_kernels_compute_are_refused(tiny, cubins):
    weights = dialogue_weights(load_bundle(tiny.bundle))
    head = {n: np.resize(x, (33, *x.shape[1:])) if n.startswith("down") else x for n, x in weights.head.items()}
    with pytest.raises(BackendError, match="33 labels, the GPU's kernels take 32"):
        DialogueScope(HostDevice(Sizes(5, 2, 16)), weights._replace(head=head), "float32", 2, cubins)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_without_a_gpu_the_runtime_says_so(tiny, provider):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match=r"cannot be reached through pycuda .*provider='cpu'"):
        HBAFRuntime(tiny.bundle, provider=provider)


def test_the_back_end_names_what_runs_where(tiny, cubins):
    backend = open_native(load_bundle(tiny.bundle), "cuda", 1, cubins, lambda: HostDevice(Sizes(5, 2, 16)))
    assert (backend.provider, backend.detail) == ("cuda", "cuda (encoders: cpu)")


def test_kernels_of_its_own_are_for_a_gpu_alone(tiny, cubins):
    with pytest.raises(BackendError, match="kernels are for the providers 'cuda' and 'tensorrt', not for 'cpu'"):
        HBAFRuntime(tiny.bundle, kernels=cubins)
    with pytest.raises(BackendError, match="give HBAFRuntime that folder as `kernels`"):
        open_native(load_bundle(tiny.bundle), "cuda", 1, None, lambda: HostDevice(Sizes(5, 2, 16)))


def test_a_gpu_that_fails_while_it_is_opened_is_not_the_bundles_fault(tiny, cubins):
    device = HostDevice(Sizes(5, 2, 16))
    device.broken = True
    with pytest.raises(BackendError, match="in the middle of a turn"):
        open_native(load_bundle(tiny.bundle), "cuda", 1, cubins, lambda: device)


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_on_a_gpu_fifty_conversations_are_the_cpus(provider):
    """The default model; engines are built of a float16 bundle of it, named by HBAF_GPU_BUNDLE."""
    pytest.importorskip("cuda.bindings")
    bundle = os.environ.get("HBAF_GPU_BUNDLE")
    if provider == "tensorrt":
        pytest.importorskip("tensorrt")
        if bundle is None:
            pytest.skip("HBAF_GPU_BUNDLE names no float16 bundle of the default model (python -m export.half)")
    fast, plain = HBAFRuntime(bundle, provider=provider), HBAFRuntime(bundle)
    flips = turns = 0
    for seed in range(50):
        ours, theirs = fast.conversation(), plain.conversation()
        for said in SCRIPT:
            a, b = (say(r, c, *said, seed=seed) for r, c in ((fast, ours), (plain, theirs)))
            flips, turns = flips + (a.label != b.label), turns + 1
            assert abs(a.confidence - b.confidence) < 0.15, "INT8 beside half precision"
    assert flips <= 0.03 * turns
