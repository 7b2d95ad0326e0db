"""The training module with frozen and trained encoders, batches of different lengths, and state caches."""

import copy
import os
import sys

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import speech
from training import caches, encoders
from training.batches import TextTokeniser, Turn, encode_texts
from training.config import LossWeights, TrainConfig
from training.corpora.records import Dialogue, Utterance
from training.feature_provider import FeatureProvider
from training.training_module import ORDER_RATE_FACTOR, TrainingModule, parameter_groups


@pytest.fixture
def clips(tmp_path):
    """Three clips of different lengths."""
    paths = []
    for n, seconds in enumerate((0.4, 0.7, 0.55)):
        paths.append(tmp_path / f"{n}.wav")
        soundfile.write(paths[-1], speech(seconds, seed=n), 16_000)
    return paths


def training_module(tiny, text="frozen", audio="frozen"):
    hbaf, text_encoder, audio_encoder = (copy.deepcopy(x) for x in (tiny.model, tiny.text, tiny.audio))
    text_encoder.requires_grad_(text == "full")
    audio_encoder.requires_grad_(audio == "full")
    return TrainingModule(hbaf, text_encoder, audio_encoder, LossWeights()).eval()


def test_clip_states_do_not_depend_on_the_batch(tiny, clips):
    """Whisper has no length mask; our encoder has one."""
    module = training_module(tiny)
    together = dict(module._encode_audio(clips))
    for i, clip in enumerate(clips):
        (_, alone), = module._encode_audio([clip])  # fmt: skip
        assert together[i].shape == alone.shape
        assert float((together[i] - alone).abs().max()) <= 2e-5


def test_text_states_do_not_depend_on_the_batch(tiny):
    module, tokeniser = training_module(tiny), TextTokeniser("text")
    texts = [tokeniser(t) for t in ("Hi.", "A longer sentence than that.", "Ok then.")]
    together = dict(encode_texts(module.text, texts))
    for i, tokens in enumerate(texts):
        (_, alone), = encode_texts(module.text, [tokens])  # fmt: skip
        assert float((together[i].detach() - alone.detach()).abs().max()) <= 1e-5


def test_logits_with_cached_states_equal_logits_without_cache(tiny, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoders, "folder", lambda name, path=encoders.folder("text"): path)
    module = training_module(tiny)
    dialogue = Dialogue("d", "dev", tuple(Utterance(f"Words {n}.", 0, None, c) for n, c in enumerate(clips)))
    cached = FeatureProvider(module, TrainConfig()).prepare([dialogue])
    raw = FeatureProvider(module, TrainConfig(), cached=False)
    a, b = (module.output([m.turns(dialogue, "audio+text")]).logits for m in (cached, raw))
    assert not any(isinstance(t.audio, type(clips[0])) for t in cached.turns(dialogue, "audio+text"))
    assert float((a - b).detach().abs().max()) <= 2e-3  # float16 on the disk


def names_with_gradient(module):
    return [n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]


def test_encoder_has_gradients_only_when_it_is_trained(tiny, clips):
    history = [Turn(1, None, TextTokeniser("text")("Hello there."), clips[0])]
    for tuning in ("frozen", "full"):
        module = training_module(tiny, tuning, tuning).train()
        module([history]).backward()
        text_gradients, audio_gradients = names_with_gradient(module.text), names_with_gradient(module.audio)
        if tuning == "frozen":
            assert not text_gradients + audio_gradients
            assert not module.text.training, "a frozen encoder must not use dropout"
        else:
            assert "conv1.weight" in audio_gradients
            assert "embeddings.word_embeddings.weight" in text_gradients


def test_encoders_and_order_biases_have_their_own_learning_rates(tiny):
    module = training_module(tiny, "full")
    groups = parameter_groups(module, TrainConfig(encoder_rate=1.0, learning_rate=9.0))
    assert {g["lr"] for g in groups} == {9.0, 9.0 * ORDER_RATE_FACTOR, 1.0}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.01}
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in module.parameters())


def test_clips_are_cropped_in_training(tiny, clips):
    module = training_module(tiny, audio="full")
    module.audio_seconds = 0.3
    module.train()
    assert len(module._load_clip(clips[1])) == 4_800
    torch.manual_seed(0)
    first = module._load_clip(clips[1])
    torch.manual_seed(0)
    assert torch.equal(first, module._load_clip(clips[1])), "the crop depends only on the seed"


def test_long_texts_are_truncated_as_in_the_runtime():
    from hbaf_edge.features import Tokeniser

    long = "so very long " * 60
    tokens = TextTokeniser("text")(long)
    assert TextTokeniser("text")("") is None
    ids, _ = Tokeniser((encoders.folder("text") / "tokenizer.json").read_bytes())(long.strip())
    assert tokens.ids.tolist() == ids.tolist()


def test_cache_encodes_only_missing_keys_after_a_crash(tmp_path):
    def entry(key):
        return key, np.full((3, 2, 4), float(key), np.float16)

    def crash(keys):
        yield from (entry(k) for k in keys[:2])
        raise RuntimeError("crash")

    folder = tmp_path / "c"
    with pytest.raises(RuntimeError):
        caches.StateCache(folder, (2, 4)).add(["1", "2", "3"], crash, "states")
    folder.joinpath("index.jsonl").write_text('["1", 3]\n["9", ')  # one complete line, one that was cut
    folder.joinpath("states.bin").write_bytes(entry("1")[1].tobytes() + b"half an entry")
    encoded = []

    def encode(keys):
        encoded.extend(keys)
        return (entry(k) for k in keys)

    again = caches.StateCache(folder, (2, 4))
    again.add(["1", "2", "3"], encode, "states")
    again.add(["1", "2", "3"], encode, "states")
    assert encoded == ["2", "3"]
    assert [float(again[k].max()) for k in ("1", "2", "3")] == [1.0, 2.0, 3.0]
    assert again["3"].shape == (3, 2, 4)


def test_opening_a_cache_does_not_change_what_another_process_is_writing(tmp_path):
    folder = tmp_path / "c"
    caches.StateCache(folder, (1, 2)).add(["1"], lambda keys: [("1", np.ones((2, 1, 2), np.float16))], "states")
    with (folder / "states.bin").open("ab") as states, (folder / "index.jsonl").open("a") as index:
        states.write(b"12345678")
        index.write('["2", ')
    before = [(folder / name).read_bytes() for name in ("states.bin", "index.jsonl")]
    cache = caches.StateCache(folder, (1, 2))
    assert "1" in cache
    assert "2" not in cache
    assert [(folder / name).read_bytes() for name in ("states.bin", "index.jsonl")] == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_many_entries_need_few_file_descriptors(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 64
    cache = caches.StateCache(tmp_path / "c", (1, 2))
    keys = [str(k) for k in range(200)]
    cache.add(keys, lambda missing: ((k, np.ones((2, 1, 2), np.float16)) for k in missing), "states")
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 20, hard))
    try:
        assert len([cache[k] for k in keys]) == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_augmented_variants_of_a_clip_differ_and_are_reproducible(tiny, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("HBAF_CACHE", str(tmp_path / "cache"))
    cache = caches.AudioCache(tiny.audio, (3, 16)).fill(clips, copies=2)
    first = [cache.states(clips[0], copy).copy() for copy in range(3)]
    assert len({f.tobytes() for f in first}) == 3
    again = caches.AudioCache(tiny.audio, (3, 16)).fill(clips, copies=2)
    assert (again.states(clips[0], 2) == first[2]).all()
