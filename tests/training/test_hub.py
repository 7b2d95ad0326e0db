"""Encoders from local Hugging Face folders."""

import shutil
from dataclasses import replace

import pytest
import soundfile
import transformers

from tests.conftest import speech
from training import encoders, hub
from training.batches import TextTokeniser, encode_texts
from training.errors import TrainingError
from training.model import HBAF
from training.training_module import TrainingModule

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONVOLUTIONS = {
    "conv_dim": (8,) * 7, "num_feat_extract_layers": 7, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
AUDIO = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
TEXT = {"bert": "Bert", "roberta": "Roberta"}


def save_random_model(name, folder, **sizes):
    """Save a tiny random model with save_pretrained."""
    config, model = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}Model")
    model(config(**SMALL, **sizes)).save_pretrained(folder)
    return str(folder)


def tiny_hbaf(config):
    return HBAF(replace(config, width=16, heads=2, contrastive_dim=8))


@pytest.mark.parametrize("kind", AUDIO)
def test_local_audio_encoder_encodes_clips_independently_of_the_batch(kind, tmp_path):
    clips = []
    for n, seconds in enumerate((0.4, 0.7, 0.55)):
        clips.append(tmp_path / f"{n}.wav")
        soundfile.write(clips[-1], speech(seconds, seed=n), 16_000)
    name = save_random_model(AUDIO[kind], tmp_path / kind, **CONVOLUTIONS)
    config = encoders.model_config(name)
    assert (config.audio_dim, config.audio_states) == (16, 3)
    module = TrainingModule(tiny_hbaf(config), None, encoders.load_audio(name)).eval()
    together = dict(module._encode_audio(clips))
    for i, clip in enumerate(clips):
        (_, alone), = module._encode_audio([clip])  # fmt: skip
        assert together[i].shape == alone.shape == (len(alone), 3, 16)
        assert abs(len(alone) - (20, 35, 27.5)[i]) <= 1.5, "states have 50 Hz"
        assert float((together[i] - alone).detach().abs().max()) <= 1e-5


@pytest.mark.parametrize("kind", TEXT)
def test_local_text_encoder_needs_a_tokeniser(kind, tmp_path):
    name = save_random_model(TEXT[kind], tmp_path / kind, max_position_embeddings=140)
    with pytest.raises(TrainingError, match=r"contains no tokenizer.json"):
        encoders.load_text(name)
    shutil.copy(encoders.folder("text") / "tokenizer.json", tmp_path / kind)
    config = encoders.model_config(text=name)
    assert (config.text_dim, config.text_states) == (16, 3)
    tokens = [TextTokeniser(name)(t) for t in ("Really?", "Yes, really.", "No.")]
    states = dict(encode_texts(encoders.load_text(name), tokens))
    assert [len(states[i]) for i in range(3)] == [len(t.ids) for t in tokens]


def test_encoder_of_the_wrong_kind_raises(tmp_path):
    name = save_random_model("Bert", tmp_path / "bert")
    with pytest.raises(TrainingError, match="is a bert model; the audio encoder must be one of wav2vec2"):
        encoders.model_config(name)
    with pytest.raises(TrainingError, match="expected text, or a local Hugging Face folder"):
        encoders.model_config(text="audio-base")
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match="pickles are not read"):
        hub.load(tmp_path / "bert", hub.TEXT_KINDS, "text")
