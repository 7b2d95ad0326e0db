"""The implementations that the kernel benchmark compares agree, and its count of moved bytes is right."""

import os

import pytest
import torch

from benchmarks import kernels
from hbaf_edge.errors import BackendError
from kernels.reference import bimodal_attention_gate
from kernels.ring import Ring, step_reference


def test_a_step_by_two_attentions_equals_the_reference():
    step, ring, weights = kernels.random_step(3, 8, 128, torch.float32, "cpu")
    other = Ring(*(x.clone() for x in ring))
    step = step._replace(slots=step.slots * torch.tensor([1, 0, 1], dtype=torch.uint8)[:, None])
    output = kernels.step_by_two_attentions(step, other, weights)
    torch.testing.assert_close(output, step_reference(step, ring, weights, store=True), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(ring, other))


@pytest.mark.parametrize("shape", [(2, 9, 9), (2, 7, 5)])
def test_a_sequence_by_two_attentions_equals_the_reference(shape):
    inputs = kernels.random_sequence(*shape, torch.float32, "cpu", d=128)
    expected = bimodal_attention_gate(*inputs)
    torch.testing.assert_close(kernels.sequence_by_two_attentions(*inputs), expected, rtol=1e-5, atol=1e-6)


def test_a_layer_by_kernels_equals_the_layer_in_pytorch():
    inputs = kernels.random_layer(3, 8, 128, torch.float32, "cpu")
    copy = inputs._replace(ring=Ring(*(x.clone() for x in inputs.ring)))
    output = kernels.layer_by_kernels(inputs)
    torch.testing.assert_close(output, kernels.layer_in_pytorch(copy), rtol=1e-4, atol=1e-5)
    for a, b in zip(inputs.ring, copy.ring):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_layer_in_pytorch_never_uses_the_kernel(monkeypatch):
    """It is compared with the kernel; on a GPU, training's modules use the kernel by default."""
    monkeypatch.setenv("HBAF_KERNELS", "triton")
    monkeypatch.setattr("kernels.sequence.gate", lambda *_: pytest.fail("the kernel was launched"))
    kernels.layer_in_pytorch(kernels.random_layer(1, 8, 128, torch.float32, "cpu"))
    assert os.environ["HBAF_KERNELS"] == "triton"


def test_rotating_inputs_are_larger_than_the_cache(monkeypatch):
    """The weights of a layer count, too."""
    monkeypatch.setattr(kernels, "ROTATED_BYTES", 3 << 20)
    inputs = kernels.rotating_inputs(lambda: kernels.random_layer(1, 8, 128, torch.float16, "cpu"))
    sizes = {x.data_ptr(): x.nbytes for arguments in inputs for x in kernels.tensors_of(arguments)}
    assert 3 << 20 < sum(sizes.values()) < 6 << 20


def test_the_bytes_of_a_step_are_those_of_its_tensors():
    """Ring and turn are read once; the new slot and the output are written once."""
    step, ring, weights = kernels.random_step(4, 32, 256, torch.float16, "cpu")
    size = sum(x.nbytes for part in (step, ring, weights) for x in part)
    unread = sum(x[:, :1].numel() * x.element_size() for x in ring)  # the slot that the new turn overwrites
    output, stored = 4 * 2 * 256 * 2, step.news.nbytes
    assert kernels.step_bytes(4, 32, 256) == size - unread + output + stored


def test_without_a_gpu_the_benchmark_raises_an_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        kernels.main()


@pytest.mark.gpu
def test_every_implementation_is_measured_on_a_gpu():
    for kind, cases in kernels.cases(quick=True).items():
        section = kernels.section(kind, cases, repeats=5)
        assert len(section.measures) == sum(len(case.implementations) for case in cases)
        assert all(measure["p50"] > 0 for measure in section.measures.values())
