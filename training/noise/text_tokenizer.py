"""A small byte-level BPE in the form of Llama 3's tokenizer.json: same pattern, same control tokens."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from models.bundle import Bundle

# How Llama 3 cuts text into words before it merges bytes.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
_CONTROL = [
    BOS, EOS, "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
]  # fmt: skip
_SAMPLE = """\
Thank you for calling. How can I help you today? I would like to know when the next train leaves
for the city, and whether there is a seat by the window. The one at half past nine is full, but
there are still places on the ten o'clock. That will be twenty-four pounds and fifty pence, please.
Could you tell me what the weather will be like tomorrow? It should be warm and sunny in the
morning, with some rain coming from the west later in the day. You may want to take a coat with you.
She had never been so happy in all her life, and yet she could not say why. He looked at her for a
moment, then turned away and went down the stairs without another word. "I do not think that they
will be here before the evening," said his mother, "and there is nothing that we can do about it."
People often ask where the name comes from. Nobody really knows. Some say that it was the name of
a ship; others, that it was a street in the old part of the town. What we have found is that it was
first written down more than three hundred years ago, by a man who sold bread and beer to sailors.
Let me check that for you. Your order has been sent and should arrive between the fourth and the
sixth of March. If anything is wrong with it, just give us a call, and we'll make it right. Is there
anything else I can do? No, that's everything, thanks. You're welcome. Have a good night, goodbye.
Yes, of course. We've got seven or eight of them here. Which one would you like to try first? Now,
this is the question: should we go on, or wait until they are ready? It doesn't matter much to me.
"""


def make(bundle: Bundle, path: Path) -> None:
    """Write a tokenizer.json with exactly the bundle's text_vocab_size entries to `path`.

    As in Llama 3, control tokens have the highest ids and the file's own post-processor adds a BOS.
    """
    size = bundle.generator.text_vocab_size
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(_CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_SAMPLE], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _CONTROL])
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"text_vocab_size {size}: the sample text gives {tokenizer.get_vocab_size()} entries")
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
