"""Our GPU back ends against ONNX Runtime, turn by turn, on a host that interprets the kernels."""

import copy
import os

import numpy as np
import pytest

from hbaf_edge import HBAFRuntime
from hbaf_edge.backends.base import Request
from hbaf_edge.backends.cuda.dialogue import DialogueOnGpu, DialogueScope, split_keys_values
from hbaf_edge.backends.cuda.tensorrt_backend import TensorRTBackend
from hbaf_edge.backends.cuda.weights import dialogue_weights
from hbaf_edge.backends.onnxruntime import OrtBackend
from hbaf_edge.backends.open import open_gpu_backend
from hbaf_edge.bundle import load_bundle
from hbaf_edge.errors import BackendError
from kernels.shipped import Sizes
from tests.conftest import speech
from tests.hbaf_edge.cuda.host import HostDevice
from tests.kernels.test_build import run_with_compiler

RATE = 16_000
TURNS = [  # speaker, seconds of audio, text
    ("anna", 0.9, "hello there"), ("bob", None, "i am fine"), ("anna", 0.5, None), (None, 1.4, "no way"),
          ("bob", 0.3, "what a day"), ("carla", None, "yes"), ("anna", 0.7, "well"), ("bob", 0.6, None)]  # fmt: skip


@pytest.fixture(scope="module")
def cubins(tiny, tmp_path_factory):
    """Kernels for the sizes of the tiny model and one architecture."""
    out = tmp_path_factory.mktemp("kernels") / "cubins"
    done = run_with_compiler(f"from kernels.build import *; build(Path({str(out)!r}), Sizes(5, 2, 16), (87,))")
    assert done.returncode == 0, done.stderr[-2000:]
    return out


class FakeEngine:
    """Replaces `TensorRTEngine`: runs the engine's graph on ONNX Runtime."""

    def __init__(self, device, bundle, name):
        import onnxruntime as ort

        self.device, self.session = device, ort.InferenceSession(bundle.graph(name), providers=["CPUExecutionProvider"])
        self.shapes = {}

    def outputs(self, shapes):
        dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": bool}
        inputs = {i.name: np.zeros(shapes[i.name], dtypes[i.type]) for i in self.session.get_inputs()}
        outputs = self.session.run(None, inputs)
        self.shapes = {n: (x.shape, x.dtype) for n, x in inputs.items()}
        return {o.name: x.shape for o, x in zip(self.session.get_outputs(), outputs)}

    def run(self, addresses):
        inputs = {n: self.device.array(addresses[n], *spec).copy() for n, spec in self.shapes.items()}
        assert all(address % 256 == 0 for address in addresses.values()), "TensorRT needs aligned addresses"
        for output, value in zip(self.session.get_outputs(), self.session.run(None, inputs)):
            self.device.array(addresses[output.name], value.shape, np.float32)[...] = value


def open_runtime(tiny, cubins, provider, capacity=3, dtype="float32"):
    """A runtime of the tiny model on the host device, with the device and the dialogue scope."""
    bundle, device = load_bundle(tiny.bundle), HostDevice(Sizes(5, 2, 16))
    runtime = HBAFRuntime(tiny.bundle, threads=1)
    scope = DialogueScope(device, dialogue_weights(bundle), dtype, capacity, cubins)
    if provider == "cuda":
        backend = OrtBackend(bundle, "cpu", 1, DialogueOnGpu(scope, device))
    else:
        engines = {name: FakeEngine(device, bundle, name) for name in ("audio", "text", "utterance")}
        backend = TensorRTBackend(bundle, 1, scope, device, engines, cubins)
    runtime.engine.backend = backend
    return runtime, device, scope


def predict_turn(runtime, conversation, speaker, seconds, text, seed=0):
    audio = None if seconds is None else speech(seconds, seed=seed)
    rate = None if seconds is None else RATE
    return runtime.predict(audio, sample_rate=rate, text=text, speaker=speaker, conversation=conversation)


def assert_close(result, expected, atol=2e-5):
    np.testing.assert_allclose(list(result.probabilities.values()), list(expected.probabilities.values()), atol=atol)
    np.testing.assert_allclose(result.embedding, expected.embedding, atol=20 * atol)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_turn_by_turn_equals_onnx_runtime(tiny, cubins, provider):
    """More turns than the window has; per turn two copies and the expected number of launches."""
    runtime, device, scope = open_runtime(tiny, cubins, provider)
    cpu = HBAFRuntime(tiny.bundle, threads=1)
    on_gpu, on_cpu = runtime.conversation(), cpu.conversation()
    for turn, utterance in enumerate(TURNS):
        before, launched = list(device.copies), len(device.launches)
        assert_close(
            predict_turn(runtime, on_gpu, *utterance, seed=turn), predict_turn(cpu, on_cpu, *utterance, seed=turn)
        )
        assert [a - b for a, b in zip(device.copies, before)] == [1, 1]
        names = device.launches[launched:]
        assert len(names) - names.count("keep") == 3 * scope.layers + 1
        assert names.count("gate_step") == scope.layers, "one launch of the gate per layer"
    np.testing.assert_allclose(on_gpu.memory.keys, on_cpu.memory.keys, atol=1e-4)
    np.testing.assert_allclose(on_gpu.memory.context_values, on_cpu.memory.context_values, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_more_conversations_than_rows_give_the_same_results(tiny, cubins, provider):
    """Five conversations on two rows, in a batch and one by one."""
    runtime, *_ = open_runtime(tiny, cubins, provider, capacity=2)
    cpu = HBAFRuntime(tiny.bundle, threads=1)
    on_gpu, on_cpu = ([r.conversation() for _ in range(5)] for r in (runtime, cpu))
    for turn in range(3):
        turns = [
            {"audio": speech(0.3 + 0.2 * (i % 2), seed=i + turn), "sample_rate": RATE, "text": f"turn {turn}"}
            for i in range(5)
        ]
        results = runtime.predict_batch([{**t, "conversation": c} for t, c in zip(turns, on_gpu)])
        expected = cpu.predict_batch([{**t, "conversation": c} for t, c in zip(turns, on_cpu)])
        for a, b in zip(results, expected):
            assert_close(a, b)
        assert_close(predict_turn(runtime, on_gpu[turn], *TURNS[1]), predict_turn(cpu, on_cpu[turn], *TURNS[1]))


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_rows_follow_every_change_of_a_conversation(tiny, cubins, provider, tmp_path):
    """Provisional and revised turns, forks, resets, saving and loading."""
    runtime, *_ = open_runtime(tiny, cubins, provider)
    cpu = HBAFRuntime(tiny.bundle, threads=1)
    both = [(r, r.conversation()) for r in (runtime, cpu)]

    def compare(action):
        a, b = (action(r, c) for r, c in both)
        if a is not None:
            assert_close(a, b)

    def live(r, c):
        turn = r.begin(speaker="anna", conversation=c)
        turn.feed(speech(0.8), RATE)
        turn.provisional("no")
        turn.finish("no")
        return turn.revise("no, never")

    for turn in range(6):
        compare(lambda r, c, turn=turn: predict_turn(r, c, *TURNS[turn]))
    compare(live)
    forks = [(r, c.fork()) for r, c in both]
    compare(lambda r, c: predict_turn(r, c, *TURNS[3]))
    assert_close(*(predict_turn(r, c, *TURNS[2]) for r, c in forks))
    for _, c in both:
        c.save(tmp_path / "conversation")
        c.reset()
    compare(lambda r, c: predict_turn(r, c, *TURNS[0]))
    assert_close(*(predict_turn(r, r.load_conversation(tmp_path / "conversation"), *TURNS[4]) for r, _ in both))


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_failing_gpu_loses_no_turn(tiny, cubins, provider):
    runtime, device, _ = open_runtime(tiny, cubins, provider)
    cpu = HBAFRuntime(tiny.bundle, threads=1)
    on_gpu, on_cpu = runtime.conversation(), cpu.conversation()
    for utterance in TURNS[:3]:
        predict_turn(runtime, on_gpu, *utterance), predict_turn(cpu, on_cpu, *utterance)
    before, device.is_broken = copy.deepcopy(on_gpu.memory.keys), True
    with pytest.raises(BackendError, match="in the middle of a turn; it was not committed"):
        predict_turn(runtime, on_gpu, *TURNS[3])
    assert on_gpu.turn == 3
    assert np.array_equal(on_gpu.memory.keys, before)
    forks = (on_gpu.fork(), on_cpu.fork())
    assert_close(*(predict_turn(cpu, fork, *TURNS[3]) for fork in forks))  # another back end can continue
    device.is_broken = False
    assert_close(predict_turn(runtime, on_gpu, *TURNS[3]), predict_turn(cpu, on_cpu, *TURNS[3]))


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_reassigned_row_does_not_affect_its_new_conversation(tiny, cubins, provider):
    """Not even if it contains NaN, which a mask does not remove from a sum."""
    runtime, device, scope = open_runtime(tiny, cubins, provider, capacity=1)
    cpu = HBAFRuntime(tiny.bundle, threads=1)
    for utterance in TURNS[:2]:
        predict_turn(runtime, runtime.conversation(), *utterance)
    rings = [getattr(x, "_rings", None) for x in (scope, runtime.engine.backend)]  # no public attribute has them
    memories = [
        device.array(r.arguments[n], (r.arguments["step_row"],), np.float32)
        for r in rings
        if r
        for n in ("keys", "values")
    ]
    for ring in memories:
        ring[...] = np.nan
    on_gpu, on_cpu = runtime.conversation(), cpu.conversation()
    for utterance in TURNS[:2]:
        assert_close(predict_turn(runtime, on_gpu, *utterance), predict_turn(cpu, on_cpu, *utterance))
    assert all(np.isfinite(ring).all() for ring in memories)


@pytest.mark.slow
def test_float16_stays_close_to_onnx_runtime(tiny, cubins):
    runtime, *_ = open_runtime(tiny, cubins, "cuda", dtype="float16")
    cpu = HBAFRuntime(tiny.bundle, threads=1)
    on_gpu, on_cpu = runtime.conversation(), cpu.conversation()
    for utterance in TURNS:
        assert_close(predict_turn(runtime, on_gpu, *utterance), predict_turn(cpu, on_cpu, *utterance), atol=3e-3)


def test_int8_weights_of_the_default_model_are_dequantised():
    weights = dialogue_weights(load_bundle(None))
    assert (weights.window, weights.heads, weights.e, len(weights.layers)) == (32, 4, 64, 2)
    for layer in weights.layers:
        assert layer["project"].shape == (2, 1024, 256)
        assert 0.01 < layer["project"].std() < 0.2
        assert np.isfinite(np.concatenate([x.ravel() for x in layer.values()])).all()


def test_a_wrong_shape_or_window_is_an_error_before_any_launch(tiny, cubins):
    runtime, device, scope = open_runtime(tiny, cubins, "cuda")
    requests, launches = [Request(None, None, runtime.conversation().view(None))], len(device.launches)
    with pytest.raises(BackendError, match=r"codes have shape \(1, 2, 3\); the GPU takes \(1, 2, 32\)"):
        DialogueOnGpu(scope, device)(np.zeros((1, 2, 3), np.float32), np.ones((1, 2), bool), requests)
    assert len(device.launches) == launches
    with pytest.raises(BackendError, match="window of 32"):
        DialogueScope(HostDevice(Sizes(5, 2, 16)), dialogue_weights(load_bundle(tiny.bundle)), "float32", 2)


def test_float16_overflow_becomes_the_largest_number():
    keys, values = split_keys_values(np.full((2, 1, 2, 2, 4), np.inf, np.float16))
    assert np.abs(keys).max() == np.abs(values).max() == 65504


def test_more_labels_than_the_kernels_support_are_an_error(tiny, cubins):
    weights = dialogue_weights(load_bundle(tiny.bundle))
    head = {n: np.resize(x, (33, *x.shape[1:])) if n.startswith("down") else x for n, x in weights.head.items()}
    with pytest.raises(BackendError, match="33 labels, the GPU's kernels take 32"):
        DialogueScope(HostDevice(Sizes(5, 2, 16)), weights._replace(head=head), "float32", 2, cubins)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_runtime_raises_without_a_gpu(tiny, provider):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match=r"cannot be reached through pycuda .*provider='cpu'"):
        HBAFRuntime(tiny.bundle, provider=provider)


def test_the_back_end_reports_provider_and_detail(tiny, cubins):
    backend = open_gpu_backend(load_bundle(tiny.bundle), "cuda", 1, cubins, lambda: HostDevice(Sizes(5, 2, 16)))
    assert (backend.provider, backend.detail) == ("cuda", "cuda (encoders: cpu)")


def test_kernels_are_an_error_for_the_cpu_and_must_fit_the_model(tiny, cubins):
    with pytest.raises(BackendError, match="kernels are for the providers 'cuda' and 'tensorrt', not for 'cpu'"):
        HBAFRuntime(tiny.bundle, kernels=cubins)
    with pytest.raises(BackendError, match="give HBAFRuntime that folder as `kernels`"):
        open_gpu_backend(load_bundle(tiny.bundle), "cuda", 1, None, lambda: HostDevice(Sizes(5, 2, 16)))


def test_a_gpu_failure_while_opening_is_a_backend_error(tiny, cubins):
    device = HostDevice(Sizes(5, 2, 16))
    device.is_broken = True
    with pytest.raises(BackendError, match="in the middle of a turn"):
        open_gpu_backend(load_bundle(tiny.bundle), "cuda", 1, cubins, lambda: device)


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_fifty_conversations_on_a_gpu_equal_those_on_the_cpu(provider):
    """With the default model. HBAF_GPU_BUNDLE names a float16 bundle of it, to build engines from."""
    pytest.importorskip("cuda.bindings")
    bundle = os.environ.get("HBAF_GPU_BUNDLE")
    if provider == "tensorrt":
        pytest.importorskip("tensorrt")
        if bundle is None:
            pytest.skip("HBAF_GPU_BUNDLE names no float16 bundle of the default model (python -m export.float16)")
    fast, cpu = HBAFRuntime(bundle, provider=provider), HBAFRuntime(bundle)
    flips = turns = 0
    for seed in range(50):
        on_gpu, on_cpu = fast.conversation(), cpu.conversation()
        for utterance in TURNS:
            a, b = (predict_turn(r, c, *utterance, seed=seed) for r, c in ((fast, on_gpu), (cpu, on_cpu)))
            flips, turns = flips + (a.label != b.label), turns + 1
            assert abs(a.confidence - b.confidence) < 0.15, "INT8 against half precision"
    assert flips <= 0.03 * turns
