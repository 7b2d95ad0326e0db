"""Encoders inside of the learner: frozen, tuned and LoRA; batches that change nothing; local Hugging Face folders."""

import copy

import pytest
import soundfile
import torch
from transformers import (
    BertConfig,
    BertModel,
    HubertConfig,
    HubertModel,
    RobertaConfig,
    RobertaModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from tests.conftest import speech
from training import caches, encode, encoders, hub
from training.batches import Turn
from training.config import LossWeights, ModelConfig, TrainConfig
from training.corpora.records import Dialogue, Utterance
from training.errors import TrainingError
from training.learner import ORDER_SPEED, Learner, groups_of, merged, tune
from training.material import Material
from training.words import Words

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONVOLUTIONS = {"conv_dim": (8,) * 7, "num_feat_extract_layers": 7, "num_conv_pos_embeddings": 8,
                "num_conv_pos_embedding_groups": 2}  # fmt: skip


AUDIO = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
}


@pytest.fixture
def clips(tmp_path):
    """Three clips of different lengths."""
    paths = []
    for n, seconds in enumerate((0.4, 0.7, 0.55)):
        paths.append(tmp_path / f"{n}.wav")
        soundfile.write(paths[-1], speech(seconds, seed=n), 16_000)
    return paths


def learner_of(tiny, text="frozen", audio="frozen"):
    parts = (copy.deepcopy(x) for x in (tiny.model, tiny.text, tiny.audio))
    hbaf, words, sound = parts
    return Learner(hbaf, tune(words, text, 2), tune(sound, audio, 2), LossWeights()).eval()


def test_clips_heard_together_are_heard_as_alone(tiny, clips):
    """Whisper has no length mask; ours makes padding inaudible."""
    learner = learner_of(tiny)
    together = dict(learner._encode_audio(clips))
    for i, clip in enumerate(clips):
        (_, alone), = learner._encode_audio([clip])  # fmt: skip
        assert together[i].shape == alone.shape
        assert float((together[i] - alone).abs().max()) <= 2e-5


def test_texts_read_together_are_read_as_alone(tiny):
    learner, words = learner_of(tiny), Words("text")
    told = [words(t) for t in ("Hi.", "A longer sentence than that.", "Ok then.")]
    together = dict(encode.texts(learner.text, told))
    for i, tokens in enumerate(told):
        (_, alone), = encode.texts(learner.text, [tokens])  # fmt: skip
        assert float((together[i].detach() - alone.detach()).abs().max()) <= 1e-5


def test_cached_states_are_what_the_encoder_gives(tiny, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoders, "folder", lambda name, path=encoders.folder("text"): path)
    learner = learner_of(tiny)
    dialogue = Dialogue("d", "dev", tuple(Utterance(f"Words {n}.", 0, None, c) for n, c in enumerate(clips)))
    cached = Material(learner, TrainConfig()).prepare([dialogue])
    raw = Material(learner, TrainConfig(), cached=False)
    a, b = (learner.output([m.shown(dialogue, "audio+text")]).logits for m in (cached, raw))
    assert not any(isinstance(t.audio, type(clips[0])) for t in cached.shown(dialogue, "audio+text"))
    assert float((a - b).detach().abs().max()) <= 2e-3  # float16 on the disk


def test_frozen_gets_no_gradient_and_lora_little(tiny, clips):
    history = [Turn(1, None, Words("text")("Hello there."), clips[0])]
    for how in ("frozen", "lora", "full"):
        learner = learner_of(tiny, how, how).train()
        learner([history]).backward()
        learned = [n for n, p in learner.text.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        heard = [n for n, p in learner.audio.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        if how == "frozen":
            assert not learned + heard
            assert not learner.text.training, "a frozen encoder must not drop out"
        elif how == "lora":
            assert learned
            assert heard
            assert all("lora_" in n for n in learned + heard)
        else:
            assert "conv1.weight" in heard
            assert "embeddings.word_embeddings.weight" in learned


def test_lora_merges_into_the_plain_encoder(tiny):
    encoder = tune(copy.deepcopy(tiny.text), "lora", 2)
    for name, p in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    ids = torch.tensor([[101, 2000, 102]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    plain = merged(encoder)
    assert set(plain.state_dict()) == set(tiny.text.state_dict())
    difference = encoders.text_states(encoder.eval(), ids, mask) - encoders.text_states(plain.eval(), ids, mask)
    assert float(difference.detach().abs().max()) <= 1e-5
    assert (
        float((encoders.text_states(tiny.text, ids, mask) - encoders.text_states(plain, ids, mask)).abs().max()) > 0.1
    )


def test_encoders_and_order_learn_at_rates_of_their_own(tiny):
    learner = learner_of(tiny, "full")
    groups = groups_of(learner, TrainConfig(encoder_rate=1.0, learning_rate=9.0))
    assert {g["lr"] for g in groups} == {9.0, 9.0 * ORDER_SPEED, 1.0}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.01}
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in learner.parameters())


def test_in_training_clips_are_cropped_and_changed(tiny, clips):
    learner = learner_of(tiny, audio="full")
    learner.audio_seconds = 0.3
    learner.train()
    assert len(learner._heard(clips[1])) == 4_800
    torch.manual_seed(0)
    first = learner._heard(clips[1])
    torch.manual_seed(0)
    assert torch.equal(first, learner._heard(clips[1])), "the same seed hears the same"


@pytest.mark.parametrize("kind", list(AUDIO))
def test_local_audio_folders(kind, tmp_path, clips):
    config, model = AUDIO[kind]
    torch.manual_seed(0)
    model(config(**SMALL, **CONVOLUTIONS)).save_pretrained(tmp_path / kind)
    found = encoders.model_config(str(tmp_path / kind))
    assert (found.audio_dim, found.audio_states) == (16, 3)
    learner = Learner(Small.of(found), None, encoders.load_audio(str(tmp_path / kind))).eval()
    together = dict(learner._encode_audio(clips))
    for i, clip in enumerate(clips):
        (_, alone), = learner._encode_audio([clip])  # fmt: skip
        assert together[i].shape == alone.shape == (len(alone), 3, 16)
        assert abs(len(alone) - len(speech((0.4, 0.7, 0.55)[i])) / 320) <= 1.5, "states come at 50 Hz"
        assert float((together[i] - alone).detach().abs().max()) <= 1e-5


@pytest.mark.parametrize("kind", list(AUDIO))
def test_lora_reaches_every_kind_of_local_encoder(kind, tmp_path, clips):
    config, model = AUDIO[kind]
    model(config(**SMALL, **CONVOLUTIONS)).save_pretrained(tmp_path / kind)
    audio = tune(encoders.load_audio(str(tmp_path / kind)), "lora", 2)
    learner = Learner(Small.of(encoders.model_config(str(tmp_path / kind))), None, audio).train()
    learner([[Turn(1, None, None, clips[0])]]).backward()
    adapters = {n: p for n, p in audio.named_parameters() if "lora_B" in n}
    assert adapters
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.values()), "an adapter learns nothing"


class Small:
    @staticmethod
    def of(found: ModelConfig):
        from dataclasses import replace

        from training.model import HBAF

        return HBAF(replace(found, width=16, heads=2, contrastive_dim=8))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_local_text_folders(kind, tmp_path):
    import shutil

    config, model = {"bert": (BertConfig, BertModel), "roberta": (RobertaConfig, RobertaModel)}[kind]
    model(config(**SMALL, max_position_embeddings=140)).save_pretrained(tmp_path / kind)
    with pytest.raises(TrainingError, match=r"holds no tokenizer.json"):
        encoders.load_text(str(tmp_path / kind))
    shutil.copy(encoders.folder("text") / "tokenizer.json", tmp_path / kind)
    name = str(tmp_path / kind)
    found = encoders.model_config(text=name)
    assert (found.text_dim, found.text_states) == (16, 3)
    learner = Learner(Small.of(found), encoders.load_text(name), None).eval()
    told = [Words(name)(t) for t in ("Really?", "Yes, really.", "No.")]
    states = dict(encode.texts(learner.text, told))
    assert [len(states[i]) for i in range(3)] == [len(t.ids) for t in told]


def test_encoders_of_the_wrong_kind_are_said(tmp_path):
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path / "bert")
    with pytest.raises(TrainingError, match="is a bert model; the audio encoder is one of wav2vec2"):
        encoders.model_config(str(tmp_path / "bert"))
    with pytest.raises(TrainingError, match="cannot be the text encoder"):
        encoders.model_config(text="audio-base")
    with pytest.raises(TrainingError, match="there are text, or a local Hugging Face folder"):
        encoders.model_config(text="nowhere")
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match="pickles are not read"):
        hub.load(tmp_path / "bert", hub.TEXT_KINDS, "text")


def test_long_words_are_cut_as_the_runtime_cuts_them():
    from hbaf_edge.features import Tokeniser

    long = "so very long " * 60
    told = Words("text")(long)
    assert Words("text")("") is None
    ids, _ = Tokeniser((encoders.folder("text") / "tokenizer.json").read_bytes())(long.strip())
    assert told.ids.tolist() == ids.tolist()


def test_a_cache_goes_on_where_it_was_killed(tmp_path):
    import numpy as np

    def entry(key, scale=1.0):
        return key, np.full((3, 2, 4), scale * float(key), np.float16)

    def dies(keys):
        yield from (entry(k) for k in keys[:2])
        raise RuntimeError("killed")

    cache = caches.StateCache(tmp_path / "c", (2, 4))
    with pytest.raises(RuntimeError):
        cache.add(["1", "2", "3"], dies, "made")
    (tmp_path / "c" / "states.bin").open("ab").write(b"half a clip")
    with (tmp_path / "c" / "index.jsonl").open("a") as file:
        file.write('["1", 3]\n["9", ')  # one whole line, one torn
    asked = []

    def encode(keys):
        asked.extend(keys)
        return (entry(k) for k in keys)

    (tmp_path / "c" / "states.bin").write_bytes(entry("1")[1].tobytes() + b"torn")
    again = caches.StateCache(tmp_path / "c", (2, 4))
    again.add(["1", "2", "3"], encode, "made")
    assert asked == ["2", "3"]
    assert [float(again[k].max()) for k in ("1", "2", "3")] == [1.0, 2.0, 3.0]
    again.add(["1", "2", "3"], encode, "made")
    assert len(asked) == 2


def test_opening_a_cache_does_not_touch_what_another_process_is_writing(tmp_path):
    import numpy as np

    cache = caches.StateCache(tmp_path / "c", (1, 2))
    cache.add(["1"], lambda keys: [("1", np.ones((2, 1, 2), np.float16))], "made")
    with (tmp_path / "c" / "states.bin").open("ab") as states, (tmp_path / "c" / "index.jsonl").open("a") as index:
        states.write(b"12345678")
        index.write('["2", ')
    before = [(tmp_path / "c" / name).read_bytes() for name in ("states.bin", "index.jsonl")]
    seen = caches.StateCache(tmp_path / "c", (1, 2))
    assert "1" in seen
    assert "2" not in seen
    assert [(tmp_path / "c" / name).read_bytes() for name in ("states.bin", "index.jsonl")] == before


def test_variants_of_a_clip_are_its_own_and_stay(tiny, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    cache = caches.AudioCache(tiny.audio, (3, 16)).fill(clips, copies=2)
    first = [cache.states(clips[0], copy).copy() for copy in range(3)]
    assert len({f.tobytes() for f in first}) == 3
    again = caches.AudioCache(tiny.audio, (3, 16)).fill(clips, copies=2)
    assert (again.states(clips[0], 2) == first[2]).all()
