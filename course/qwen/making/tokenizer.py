"""The tiny Qwen's tokenizer: byte-level BPE with Qwen2's splitting rule, and its template."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from course.qwen.making import corpus
from course.qwen.making.conversations import conversations

VOCAB_SIZE = 3072
# The three that Qwen1.5's chat models use, in the same order, at the end of the vocabulary.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MAX_LENGTH = 8192
# Longer tokens would hold whole Chinese clauses, and a streamed answer would jump.
MAX_TOKEN_BYTES = 9
# What the template of Qwen1.5's chat models does. Public copies disagree on whether the default
# system line ends in a full stop; here it does.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(texts):
    """A Qwen2Tokenizer of VOCAB_SIZE tokens learned from `texts`."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE - len(SPECIAL),
            max_token_length=MAX_TOKEN_BYTES,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    vocab = model["vocab"]
    # added before the tokenizer is built, or else their ids would change
    for token in SPECIAL:
        vocab[token] = len(vocab)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[tuple(m) for m in model["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:],
        model_max_length=MAX_LENGTH,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    if len(tokenizer) != VOCAB_SIZE:
        raise ValueError(f"the vocabulary has {len(tokenizer)} tokens instead of {VOCAB_SIZE}")
    return tokenizer


def corpus_texts(seed=0, count=20_000):
    """The texts that the vocabulary is learned from.

    Names are left out, and their characters are given one by one: a token that joins a name to the
    word before it would make the name look different in the answer.
    """
    for messages in conversations(count, seed, names=False, level=1):
        for message in messages:
            yield f"{message['role']}\n"
            yield message["content"]
    for lang in corpus.LANGS:
        said = [form[lang] for form in (corpus.MEET, corpus.YOUR_NAME, corpus.MY_NAME)]
        for phrasing in said + corpus.phrasings("name", "tell", lang):
            yield from [phrasing.format(n="")] * 100
    for letter in corpus.name_letters():
        yield from [letter] * 200
