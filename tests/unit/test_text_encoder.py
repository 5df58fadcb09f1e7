"""The text half of CLIP and its tokenizer.

Properties: features follow the published formula (an independent computation, and `transformers` where it
is installed); each token sees only what stands before it; state-dict names are the published ones; a word
list becomes a vocabulary in which every word is one token.
Letters: B batch, L tokens, C channels. Not tested here: what a trained encoder knows.
"""

from __future__ import annotations

import json
import math
import string
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from trellis_core.errors import InputError, ModelError
from trellis_core.models.text_encoder import CLIPTextEncoder, published_arguments
from trellis_core.models.tokenizer import END, START, Tokenizer, split, word_vocabulary
from trellis_core.weights.load import fill_model, misfits

MANIFEST = Path(__file__).parents[1] / "golden" / "manifests" / "encoders" / "clip_vit_large_patch14.json"

WORDS = ("a", "tall", "red", "chair", "with", "armrests", "and", "blue", "at", "cat", "table", "able")

SIZES = {
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 9,
}


def random_encoder(**changes: int) -> CLIPTextEncoder:
    """Weights large enough for every part to matter."""
    torch.manual_seed(0)
    model = CLIPTextEncoder(**{**SIZES, **changes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def encoder() -> CLIPTextEncoder:
    return random_encoder()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(31, (2, 7), generator=torch.Generator().manual_seed(1))


def published_formula(weights: dict[str, torch.Tensor], row: list[int], heads: int) -> torch.Tensor:
    """Pre-norm transformer with causal softmax attention, one token and one head at a time, in float64."""
    w = {name: tensor.detach().double() for name, tensor in weights.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    embeddings = "text_model.embeddings"
    stream = [
        w[f"{embeddings}.token_embedding.weight"][token] + w[f"{embeddings}.position_embedding.weight"][place]
        for place, token in enumerate(row)
    ]
    depth = 1 + max(int(name.split(".")[3]) for name in w if ".layers." in name)
    for layer in (f"text_model.encoder.layers.{i}" for i in range(depth)):
        seen = [norm(f"{layer}.layer_norm1", x) for x in stream]
        q, k, v = ([linear(f"{layer}.self_attn.{p}_proj", x) for x in seen] for p in "qkv")
        width = len(q[0]) // heads
        for place in range(len(row)):
            mixed = []
            for span in (slice(h * width, (h + 1) * width) for h in range(heads)):
                scores = [math.exp(q[place][span] @ k[j][span] / math.sqrt(width)) for j in range(place + 1)]
                mixed.append(sum(s * v[j][span] for j, s in enumerate(scores)) / sum(scores))
            stream[place] = stream[place] + linear(f"{layer}.self_attn.out_proj", torch.cat(mixed))
        for place, x in enumerate(stream):
            hidden = linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x))
            hidden = hidden / (1 + torch.exp(-1.702 * hidden))
            stream[place] = x + linear(f"{layer}.mlp.fc2", hidden)
    return torch.stack([norm("text_model.final_layer_norm", x) for x in stream])


def test_features_follow_the_published_formula(encoder, tokens):
    got = encoder(tokens)
    assert got.shape == (2, 7, 12)
    for row, features in zip(tokens.tolist(), got, strict=True):
        want = published_formula(encoder.state_dict(), row, SIZES["num_attention_heads"])
        torch.testing.assert_close(features.double(), want, atol=1e-5, rtol=1e-5)


def test_transformers_computes_the_same(encoder, tokens):
    transformers = pytest.importorskip("transformers", reason="parity with the development dependency")
    config = transformers.CLIPTextConfig(**SIZES, hidden_act="quick_gelu", eos_token_id=30)
    theirs = transformers.CLIPTextModel(config).eval()
    theirs.load_state_dict(encoder.state_dict(), strict=False)
    want = theirs(tokens).last_hidden_state
    torch.testing.assert_close(encoder(tokens), want, atol=1e-5, rtol=1e-5)


def test_a_token_does_not_see_what_follows(encoder, tokens):
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 31
    before, after = encoder(tokens), encoder(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-2)


def test_the_same_word_at_another_place_is_another_feature(encoder):
    features = encoder(torch.tensor([[5, 5, 5]]))
    assert not torch.allclose(features[0, 0], features[0, 1], atol=1e-2)


def published_model() -> tuple[CLIPTextEncoder, dict[str, tuple[int, ...]]]:
    """The encoder of the large CLIP model without weights, and what the published file holds."""
    manifest = json.loads(MANIFEST.read_text())
    with torch.device("meta"):
        model = CLIPTextEncoder(**published_arguments(manifest["config"]))
    return model, {key: tuple(facts["shape"]) for key, facts in manifest["tensors"].items()}


def test_the_published_file_of_the_whole_model_fits_the_text_half():
    model, shapes = published_model()
    assert misfits(model, shapes) == []
    assert sum(tensor.numel() for tensor in model.parameters()) == 123_060_480


def test_the_text_half_of_the_published_file_is_read_strictly():
    model, shapes = published_model()
    del shapes["text_model.final_layer_norm.bias"]
    assert misfits(model, {**shapes, "text_model.more": (1,), "head.weight": (1,)}) == [
        "missing `text_model.final_layer_norm.bias`",
        "unexpected `text_model.more`",
        "unexpected `head.weight`",
    ]


def test_arguments_are_read_from_the_whole_model_or_its_half():
    half = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "dropout": 0.0}
    arguments = published_arguments({"text_config": half, "vision_config": {"hidden_size": 1024}})
    assert arguments == published_arguments(half)
    assert arguments["hidden_size"] == 768 and arguments["vocab_size"] == 49408


def test_tensors_of_the_picture_half_and_position_numbers_are_left_in_the_file(tmp_path, encoder, tokens):
    others = {
        "text_model.embeddings.position_ids": torch.arange(9)[None],
        "vision_model.embeddings.position_ids": torch.arange(4)[None],
        "visual_projection.weight": torch.ones(2, 2),
        "logit_scale": torch.tensor(1.0),
    }
    save_file({**encoder.state_dict(), **others}, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = CLIPTextEncoder(**SIZES)
    fill_model(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(model(tokens), encoder(tokens))


def test_files_may_hold_position_numbers(encoder, tokens):
    model = random_encoder(num_hidden_layers=2)
    numbers = {"text_model.embeddings.position_ids": torch.arange(9)[None]}
    model.load_state_dict({**encoder.state_dict(), **numbers}, strict=True)
    torch.testing.assert_close(model(tokens), encoder(tokens))


def test_bfloat16_layers_stay_close_to_float32(tokens):
    model = random_encoder()
    want = model(tokens)
    model.set_torso_dtype(torch.bfloat16)
    got = model(tokens)
    assert got.dtype == torch.float32
    assert model.text_model.encoder.layers[0].layer_norm1.weight.dtype == torch.float32
    assert model.text_model.encoder.layers[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert (got - want).norm() < 0.05 * want.norm()


def test_an_initialised_encoder_tells_texts_apart_and_all_of_it_learns(tokens):
    torch.manual_seed(0)
    model = CLIPTextEncoder(**SIZES)
    model.initialize()
    features = model(tokens)
    assert not torch.allclose(features[0], features[1], atol=1e-2)
    (features * torch.randn_like(features)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("shape", [(1, 10), (4,)])
def test_more_tokens_than_places_are_refused(encoder, shape):
    with pytest.raises(InputError, match="at most 9"):
        encoder(torch.zeros(shape, dtype=torch.int64))


def test_variants_we_cannot_run_are_refused():
    with pytest.raises(ModelError, match="gelu"):
        CLIPTextEncoder(**SIZES, hidden_act="gelu")
    with pytest.raises(ModelError, match="5 heads"):
        CLIPTextEncoder(**{**SIZES, "num_attention_heads": 5})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(*word_vocabulary(WORDS))


def test_the_pair_that_was_merged_first_in_training_is_joined_first():
    merges = [("o", "w</w>"), ("l", "ow</w>"), ("l", "o"), ("e", "r</w>"), ("lo", "w"), ("low", "er</w>")]
    names = [*"lowern", *(f"{x}</w>" for x in "lowern"), *map("".join, merges), START, END]
    bpe = Tokenizer({name: i for i, name in enumerate(names)}, merges)
    assert bpe.pieces("low") == ["low</w>"]
    assert bpe.pieces("lower") == ["lower</w>"]
    assert bpe.pieces("lowlow") == ["low", "low</w>"]
    assert bpe.pieces("newer") == ["n", "e", "w", "er</w>"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Tall  RED\tchair\n", ["a", "tall", "red", "chair"]),
        ("it's 42!!", ["it", "'s", "4", "2", "!!"]),
        ("red-hot, (new)", ["red", "-", "hot", ",", "(", "new", ")"]),
        ("Cafe\u0301 \u6905\u5b50", ["caf\u00e9", "\u6905\u5b50"]),
        (" \t\n", []),
    ],
)
def test_texts_are_cut_into_lower_case_words(text, words):
    assert list(split(text)) == words


def test_a_text_is_framed_and_filled_with_end_tokens(tokenizer):
    encoded = tokenizer.encode("A tall red chair", 8)
    names = {i: name for name, i in tokenizer.vocab.items()}
    assert [names[i] for i in encoded.ids] == [
        *(START, "a</w>", "tall</w>", "red</w>", "chair</w>"),
        *(END, END, END),
    ]
    assert (encoded.words, encoded.dropped) == (("a", "tall", "red", "chair"), ())


def test_a_long_text_is_cut_and_says_what_was_left_out(tokenizer):
    encoded = tokenizer.encode("red " * 10_000 + "table", 6)
    assert len(encoded.ids) == 6
    assert encoded.ids[-1] == tokenizer.vocab[END]
    assert len(encoded.words) == 4
    assert len(encoded.dropped) == 9_997
    assert encoded.dropped[-1] == "table"


def test_an_unknown_word_falls_back_to_letters_and_an_unknown_letter_to_the_end_token(tokenizer):
    assert tokenizer.pieces("flat") == ["f", "l", "at</w>"]
    assert tokenizer.encode("\u6905", 6).ids[1:4] == (tokenizer.vocab[END],) * 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=7), min_size=1, max_size=12),
    st.text(string.ascii_lowercase, min_size=1, max_size=9),
)
def test_every_word_of_a_word_vocabulary_is_one_token_and_others_keep_their_letters(words, other):
    vocab, merges = word_vocabulary(words)
    bpe = Tokenizer(vocab, merges)
    assert all(bpe.pieces(word) == [f"{word}</w>"] for word in words)
    assert "".join(bpe.pieces(other)) == f"{other}</w>"
    assert all(piece in vocab for piece in bpe.pieces(other))
    assert sorted(vocab.values()) == list(range(len(vocab))) == list(range(bpe.size))


@pytest.mark.parametrize("word", ["Chair", "two words", "t-shirt", "", "4x"])
def test_a_word_vocabulary_takes_single_lower_case_words_only(word):
    with pytest.raises(ValueError, match="not one lower-case word"):
        word_vocabulary([word])


def test_vocabulary_files_are_read_back_in_the_published_format(tokenizer, tmp_path):
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    tokenizer.write(vocab, merges)
    assert json.loads(vocab.read_text())["chair</w>"] == tokenizer.vocab["chair</w>"]
    assert merges.read_text().splitlines()[:2] == ["#version: 0.2", "l l</w>"]
    again = Tokenizer.read(vocab, merges)
    assert (again.vocab, again.merges) == (tokenizer.vocab, tokenizer.merges)


@pytest.mark.parametrize(
    ("vocab", "merges", "words"),
    [
        (None, "", "missing"),
        ("{", "", "damaged"),
        ('{"a": 0}', "", "startoftext"),
        ('{"a": "0"}', "", "damaged"),
        ("[1]", "", "damaged"),
        (json.dumps({START: 0, END: 1}), "a b c", "damaged"),
    ],
)
def test_damaged_vocabularies_are_model_errors(tmp_path, vocab, merges, words):
    if vocab is not None:
        (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(ModelError, match=words):
        Tokenizer.read(tmp_path / "vocab.json", tmp_path / "merges.txt")


def test_transformers_gives_the_same_ids(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers", reason="parity with the development dependency")
    tokenizer.write(tmp_path / "vocab.json", tmp_path / "merges.txt")
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in ("A tall red chair", "flat, blue-ish cat's table!", "red " * 99):
        want = theirs(text, padding="max_length", max_length=16, truncation=True)["input_ids"]
        assert list(tokenizer.encode(text, 16).ids) == want
