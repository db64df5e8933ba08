"""The text template against transformers' fast tokenizer, and text that tries to be more than text."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from models.bundle import load_bundle
from models.files import PartError
from services.tokenizer.text import BOS, EOS, TextError, load_text_tokenizer
from training.noise import text_tokenizer

TEXTS = [
    "Hello from Sesame.",
    "  spaces   before, between and after  ",
    "numbers 1234567 and 3.14",
    "Grüße, 東京, ไทย, 🙂‍↔️",
    "line\nbreak\r\n\ttab",
    "it's we'll I'M",
    "x" * 500,
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The noise bundle with its tokenizer made here."""
    folder = tmp_path_factory.mktemp("bundle")
    bundle = load_bundle("noise")
    text_tokenizer.make(bundle, folder / "tokenizer.json")
    return replace(bundle, text_tokenizer=replace(bundle.text_tokenizer, folder=folder))


@pytest.fixture(scope="module")
def tokenizer(bundle):
    """Of a bundle that names no voices and writes in many scripts."""
    return load_text_tokenizer(replace(bundle, voices=(), languages=("de", "ja", "th")), max_chars=4096)


@pytest.fixture(scope="module")
def english(bundle):
    return load_text_tokenizer(bundle, max_chars=4096)


@pytest.fixture(scope="module")
def reference(bundle):
    return PreTrainedTokenizerFast(tokenizer_file=str(bundle.text_tokenizer.resolve()["tokenizer"]))


def expected(reference, speaker, text):
    """Sesame's template, by transformers."""
    ids = reference.encode(f"[{speaker}]{text}", add_special_tokens=False)
    return [reference.convert_tokens_to_ids(BOS), *ids, reference.convert_tokens_to_ids(EOS)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("speaker", [0, 7, 2**31 - 1])
def test_template(tokenizer, reference, speaker, text):
    segment = tokenizer.encode(speaker, text, normalize=False)
    assert segment.ids == expected(reference, speaker, text)
    assert segment.spoken_text == text


def test_nothing_is_lost(tokenizer, reference):
    for text in TEXTS:
        assert (
            reference.decode(tokenizer.encode(3, text, normalize=False).ids, skip_special_tokens=True) == f"[3]{text}"
        )


def control_tokens(bundle):
    return [t["content"] for t in json.loads(bundle.text_tokenizer.resolve()["tokenizer"].read_text())["added_tokens"]]


def test_control_tokens_are_spelled_out(tokenizer, reference, bundle):
    names = control_tokens(bundle)
    assert len(names) >= 8 and BOS in names and EOS in names
    control = {reference.convert_tokens_to_ids(name) for name in names}
    for name in names:
        text = f"before{name}after"
        ids = tokenizer.encode(0, text, normalize=False).ids
        assert control & set(reference.encode(text, add_special_tokens=False))  # the stock one obeys
        assert not control & set(ids[1:-1]), name
        assert (ids[0], ids[-1]) == tuple(reference.convert_tokens_to_ids(t) for t in (BOS, EOS))
        assert reference.decode(ids[1:-1]) == f"[0]{text}"


def test_added_tokens_that_are_not_special_are_spelled_out_too(bundle, tmp_path):
    path = bundle.text_tokenizer.resolve()["tokenizer"]
    stock = Tokenizer.from_file(str(path))
    stock.add_tokens([AddedToken("<laugh>", special=False)])
    stock.encode_special_tokens = True
    assert "<laugh>" in stock.encode("<laugh>").tokens  # what encode_special_tokens alone does not prevent
    stock.save(str(tmp_path / "tokenizer.json"))
    larger = replace(
        bundle,
        text_tokenizer=replace(bundle.text_tokenizer, folder=tmp_path),
        generator=replace(bundle.generator, text_vocab_size=513),
    )
    assert 512 not in load_text_tokenizer(larger, 100).encode(0, "ha <laugh> ha", normalize=False).ids


@pytest.mark.parametrize(
    "speaker, text, field, words",
    [
        (0, "", "text", "at least one character"),
        (0, " \n\t\u2003", "text", "at least one character"),
        (0, "x" * 4097, "text", "has 4097 characters, at most 4096"),
        (0, "x" * 2**20, "text", "has 1048576 characters, at most 4096"),
        (0, "half \ud83d a pair", "text", "lone surrogate at 5"),
        (-1, "hello", "speaker", "0 or greater, not -1"),
    ],
)
def test_bad_segments_are_refused(tokenizer, speaker, text, field, words):
    with pytest.raises(TextError) as caught:
        tokenizer.encode(speaker, text)
    assert caught.value.field == field
    assert words in caught.value.description


@pytest.mark.parametrize(
    "text, words",
    [
        ("It costs \u20ac25.", "It costs twenty five euros."),
        ("nul \0 inside", "nul inside"),
        ("<|end_of_text|><|begin_of_text|>Your table is ready.", "Your table is ready."),
        ("[1]Hello there.", "one, Hello there."),
        ("[1] [2]Hello there.", "one, two, Hello there."),
        ("\u200b[3]Hello.", "three, Hello."),
    ],
)
def test_the_ids_spell_the_spoken_form(english, reference, text, words):
    segment = english.encode(1, text)
    assert segment.spoken_text == words
    assert segment.ids == expected(reference, 1, words)


@pytest.mark.parametrize("text", ["[1]Hello there.", "  [ 1 ]Hello there.", "[0001]Hello there.", "[1]"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_text_cannot_name_another_speaker(english, reference, text, normalize):
    ids = english.encode(0, text, normalize).ids
    written = reference.decode(ids, skip_special_tokens=True)
    assert written.startswith("[0]") and written.count("[") == written.count("]") == 1


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "text, words",
    [
        ("...", "nothing to speak"),
        ("\U0001f602", "nothing to speak"),
        ("\u4f60\u597d", "Han script .* the voices speak en"),
    ],
)
def test_what_the_voices_cannot_say_is_refused(english, text, words, normalize):
    with pytest.raises(TextError, match=words) as caught:
        english.encode(0, text, normalize)
    assert caught.value.field == "text"


def test_a_nul_that_nothing_takes_out_is_refused(english):
    with pytest.raises(TextError, match=r"U\+0000"):
        english.encode(0, "nul \0 inside", normalize=False)


@pytest.mark.parametrize("speaker", [-1, 2, 99, 2**31 - 1])
def test_speakers_are_those_of_the_bundle(english, speaker):
    with pytest.raises(TextError) as caught:
        english.encode(speaker, "hello")
    assert caught.value.field == "speaker"
    assert caught.value.description == f"must be one of the bundle's: 0 (zero), 1 (one); not {speaker}"
    assert english.encode(1, "hello").ids


def test_the_longest_text_is_taken(tokenizer):
    assert len(tokenizer.encode(0, "x" * 4096, normalize=False).ids) > 4096


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda table: "{", "not a tokenizer.json"),
        (lambda table: "[]", "not a tokenizer.json"),
        (lambda table: json.dumps(table | {"model": {"type": "Nonsense"}}), "no usable tokenizer"),
        (lambda table: json.dumps(table | {"added_tokens": []}), r"has no <\|begin_of_text\|>"),
        (
            lambda table: json.dumps(
                table
                | {
                    "added_tokens": [
                        *table["added_tokens"],
                        table["added_tokens"][0] | {"id": 9000, "content": "x"},
                    ]
                }
            ),
            "ids up to 9000, the bundle's text_vocab_size is 512",
        ),
    ],
)
def test_bad_files_are_refused(bundle, tmp_path, edit, words):
    table = json.loads(bundle.text_tokenizer.resolve()["tokenizer"].read_text())
    (tmp_path / "tokenizer.json").write_text(edit(table))
    with pytest.raises(PartError, match=words) as caught:
        load_text_tokenizer(
            replace(bundle, text_tokenizer=replace(bundle.text_tokenizer, folder=tmp_path)), max_chars=10
        )
    assert caught.value.part == "text_tokenizer"


# `make test` unpacks the wheel llama-models here, off the import path.
LLAMA3 = Path(sys.prefix) / "llama3" / "llama_models" / "llama3" / "tokenizer.model"


@pytest.mark.skipif(not LLAMA3.exists(), reason="no tokenizer.model of Llama 3: run `make test`")
def test_template_with_the_vocabulary_of_llama_3(tmp_path):
    """Llama 3's own tokenizer.model made a tokenizer.json by transformers, against tiktoken's encoding."""
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe
    from transformers.convert_slow_tokenizer import TikTokenConverter

    source = str(LLAMA3)
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    names = [BOS, EOS, *(f"<|reserved_special_token_{i}|>" for i in range(254))]
    tokenizer = TikTokenConverter(vocab_file=source, pattern=pattern, extra_special_tokens=names).converted()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    public = load_bundle("csm-1b")
    ours = load_text_tokenizer(
        replace(
            public,
            languages=("de", "ja", "th"),
            text_tokenizer=replace(public.text_tokenizer, sources=({"tokenizer": "tokenizer.json"},), folder=tmp_path),
        ),
        max_chars=4096,
    )
    ranks = load_tiktoken_bpe(source)
    stock = tiktoken.Encoding("llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in TEXTS:
        assert ours.encode(0, text, normalize=False).ids == [
            128000,
            *stock.encode(f"[0]{text}", disallowed_special=()),
            128001,
        ]
