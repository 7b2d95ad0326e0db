"""The packaged encoders compared with the packages' files and with other implementations."""

import hashlib
import io
import struct

import numpy as np
import pytest
import torch

from hbaf_edge.audio import load_audio
from hbaf_edge.mel import log_mel
from tests.conftest import EXAMPLES
from training import encoders
from training.errors import TrainingError
from training.whisper import WhisperEncoder, WhisperSize, sinusoids


@pytest.fixture(scope="module")
def mel():
    """One turn of speech, padded with silence to the 30 s that the original implementations require."""
    short = log_mel(load_audio(EXAMPLES / "turn2_anna.flac").samples)
    full = np.full((1, 80, 3000), short.min(), np.float32)
    full[0, :, : short.shape[1]] = short
    return torch.from_numpy(full)


def transformers_whisper(ours: WhisperEncoder):
    """The encoder of transformers with our weights."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Theirs

    size = ours.size
    model = Theirs(
        WhisperConfig(
            d_model=size.dim,
            encoder_layers=size.layers,
            encoder_attention_heads=size.heads,
            encoder_ffn_dim=4 * size.dim,
        )
    ).eval()
    state, mine = model.state_dict(), ours.state_dict()
    for key in ("conv1", "conv2"):
        state[f"{key}.weight"], state[f"{key}.bias"] = mine[f"{key}.weight"], mine[f"{key}.bias"]
    state["embed_positions.weight"] = mine["positions"]
    state["layer_norm.weight"], state["layer_norm.bias"] = mine["norm.weight"], mine["norm.bias"]
    pairs = {
        "self_attn_layer_norm": "attention_norm",
        "self_attn.out_proj": "out",
        "final_layer_norm": "feed_norm",
        "fc1": "feed.0",
        "fc2": "feed.2",
    }
    for i in range(size.layers):
        for theirs, name in pairs.items():
            for kind in ("weight", "bias"):
                state[f"layers.{i}.{theirs}.{kind}"] = mine[f"blocks.{i}.{name}.{kind}"]
        for part, letter in enumerate("qkv"):
            rows = slice(part * size.dim, (part + 1) * size.dim)
            state[f"layers.{i}.self_attn.{letter}_proj.weight"] = mine[f"blocks.{i}.qkv.weight"][rows]
            if letter != "k":
                state[f"layers.{i}.self_attn.{letter}_proj.bias"] = mine[f"blocks.{i}.qkv.bias"][rows]
            else:
                assert not mine[f"blocks.{i}.qkv.bias"][rows].any(), "Whisper's keys have no bias"
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("name", ["audio", pytest.param("audio-base", marks=pytest.mark.slow)])
def test_whisper_equals_transformers(mel, name):
    ours = encoders.load_audio(name)
    config = encoders.model_config(name)
    assert (config.audio_dim, config.audio_states) == (ours.size.dim, ours.size.layers + 1)
    with torch.inference_mode():
        expected = transformers_whisper(ours)(mel, output_hidden_states=True)
        states = ours.layers(mel)
    for a, b in zip(states, [*expected.hidden_states[:-1], expected.last_hidden_state], strict=True):
        assert (a - b).abs().max() / b.abs().max() < 1e-4


@pytest.mark.slow
def test_whisper_equals_ctranslate2(mel, tmp_path):
    """CTranslate2 runs the original file of the weights."""
    import ctranslate2

    source = encoders.SOURCES["audio"]
    unpacked = encoders.fetch(source, tmp_path)
    folder = (unpacked / source.weights[0]).parent
    assert hashlib.sha256((unpacked / source.weights[0]).read_bytes()).hexdigest() == source.sha256
    model = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
    expected = np.array(model.encode(ctranslate2.StorageView.from_array(mel.numpy())))
    with torch.inference_mode():
        states = encoders.load_audio().layers(mel)[-1].numpy()
    assert np.abs(states - expected).max() < 5e-3
    assert np.abs(states - expected).mean() < 1e-5


def test_text_equals_the_packaged_model(tmp_path):
    """All tensors are equal, and mean-pooled states are more similar for similar sentences."""
    from safetensors.torch import load_file

    source = encoders.SOURCES["text"]
    unpacked = encoders.fetch(source, tmp_path)
    original = load_file(unpacked / source.weights[0])
    model = encoders.load_text()
    for name, value in model.state_dict().items():
        assert torch.equal(value, original[name]), name
    from hbaf_edge.features import Tokeniser

    tokeniser = Tokeniser((encoders.folder("text") / "tokenizer.json").read_bytes())

    def embedding(text):
        ids = torch.from_numpy(tokeniser(text)[0])[None]
        with torch.inference_mode():
            return torch.nn.functional.normalize(model(input_ids=ids).last_hidden_state.mean(1), dim=-1)

    similar = float(embedding("A man is eating food.") @ embedding("A man eats a meal.").T)
    different = float(embedding("A man is eating food.") @ embedding("The stock market fell today.").T)
    assert similar > 0.7 > 0.3 > different


def test_whisper_accepts_any_length_and_has_sinusoidal_positions():
    model = WhisperEncoder(WhisperSize(dim=16, heads=2, layers=2)).eval()
    for frames in (10, 11, 99):
        assert model(torch.randn(1, 80, frames)).shape == (1, (frames + 1) // 2, 3, 16)
    codes = sinusoids(1500, 384)
    assert torch.allclose(codes[0], torch.cat([torch.zeros(192), torch.ones(192)]))
    stored = encoders.load_audio().positions
    assert (stored - codes).abs().max() < 5e-4  # the package stores them in float16


def test_weights_with_a_wrong_hash_raise(tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(encoders.SOURCES, "text", replace(encoders.SOURCES["text"], sha256="0" * 64))
    with pytest.raises(TrainingError, match="the weights are refused"):
        encoders.convert("text", tmp_path / "text")
    assert not (tmp_path / "text").exists()


def test_unknown_encoder_raises_with_the_valid_names():
    with pytest.raises(TrainingError, match="unknown audio encoder 'tiny'; expected audio, audio-base"):
        encoders.model_config("tiny")
    with pytest.raises(TrainingError, match="unknown text encoder 'audio-base'; expected text"):
        encoders.model_config(text="audio-base")


def test_ctranslate2_reader_reads_a_generated_file():
    blob = io.BytesIO()

    def string(s):
        blob.write(struct.pack("<H", len(s) + 1) + s.encode() + b"\0")

    blob.write(struct.pack("<I", 6))
    string("Spec")
    blob.write(struct.pack("<II", 1, 1))
    string("encoder/x")
    value = np.arange(6, dtype=np.float16).reshape(2, 3)
    blob.write(struct.pack("<BIIBI", 2, 2, 3, 4, value.nbytes) + value.tobytes())
    ((name, tensor),) = encoders.read_ctranslate2(blob.getvalue())
    assert name == "encoder/x"
    np.testing.assert_array_equal(tensor, value)
    with pytest.raises(ValueError, match="version 5"):
        list(encoders.read_ctranslate2(struct.pack("<I", 5) + blob.getvalue()[4:]))
