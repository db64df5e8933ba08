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
    assert tokenizer.encode(speaker, text) == expected(reference, speaker, text)


def test_nothing_is_lost(tokenizer, reference):
    for text in TEXTS:
        assert reference.decode(tokenizer.encode(3, text), skip_special_tokens=True) == f"[3]{text}"


def control_tokens(bundle):
    return [t["content"] for t in json.loads(bundle.text_tokenizer.resolve()["tokenizer"].read_text())["added_tokens"]]


def test_control_tokens_are_spelled_out(tokenizer, reference, bundle):
    names = control_tokens(bundle)
    assert len(names) >= 8 and BOS in names and EOS in names
    control = {reference.convert_tokens_to_ids(name) for name in names}
    for name in names:
        text = f"before{name}after"
        ids = tokenizer.encode(0, text)
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
    assert 512 not in load_text_tokenizer(larger, 100).encode(0, "ha <laugh> ha")


@pytest.mark.parametrize(
    "speaker, text, field, words",
    [
        (0, "", "text", "at least one character"),
        (0, " \n\t\u2003", "text", "at least one character"),
        (0, "x" * 4097, "text", "has 4097 characters, at most 4096"),
        (0, "x" * 2**20, "text", "has 1048576 characters, at most 4096"),
        (0, "nul \0 inside", "text", "U+0000"),
        (0, "half \ud83d a pair", "text", "lone surrogate at 5"),
        (-1, "hello", "speaker", "0 or greater, not -1"),
    ],
)
def test_bad_segments_are_refused(tokenizer, speaker, text, field, words):
    with pytest.raises(TextError) as caught:
        tokenizer.encode(speaker, text)
    assert caught.value.field == field
    assert words in caught.value.description


def test_the_longest_text_is_taken(tokenizer):
    assert len(tokenizer.encode(0, "x" * 4096)) > 4096


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
            text_tokenizer=replace(public.text_tokenizer, sources=({"tokenizer": "tokenizer.json"},), folder=tmp_path),
        ),
        max_chars=4096,
    )
    ranks = load_tiktoken_bpe(source)
    stock = tiktoken.Encoding("llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in TEXTS:
        assert ours.encode(0, text) == [128000, *stock.encode(f"[0]{text}", disallowed_special=()), 128001]
