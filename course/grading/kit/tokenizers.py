"""Tokenizers and chat templates other than the tiny Qwen's own, for use in the room."""

import copy
import json
import traceback

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

NAMED_ROLES = (
    "{% if messages[0]['role'] != 'system' %}[system] You are a helpful assistant.\n{% endif %}"
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""A template without control tokens that begins with a system line."""

TEMPLATES = {
    "of its own": {"template": None, "tokens": [], "trims": False},
    "with a token for each role": {
        "template": (
            "{% for message in messages %}<|{{ message['role'] }}|>\n"
            "{{ message['content'] }}<|end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
        ),
        "tokens": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        "trims": False,
    },
    "with headers that trims messages": {
        "template": (
            "{{ '<|begin_of_text|>' }}{% for message in messages %}"
            "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
            "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
            "{% if add_generation_prompt %}"
            "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
        ),
        "tokens": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "trims": True,
        "adds": "<|begin_of_text|>",
    },
    "with [INST]": {
        "template": (
            "<s>{% for message in messages %}{% if message['role'] == 'assistant' %}"
            "{{ ' ' + message['content'] }}</s>{% elif message['role'] == 'system' %}"
            "{{ '[SYS] ' + message['content'] + ' [/SYS]' }}{% else %}"
            "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
        ),
        "tokens": ["<s>", "</s>", "[INST]", "[/INST]", "[SYS]", "[/SYS]"],
        "trims": False,
        "adds": "<s>",
    },
}
"""{what is said of it: its template (None: the tokenizer's own), the control tokens that it writes,
whether it trims the contents; the token that its models' tokenizers put before any text, if they do}."""


ENCODING = (
    "apply_chat_template returns a dictionary (since transformers 5), which was used as if it were the ids:"
    ' take its "input_ids"'
)
"""What is said of an error for which `is_about_an_encoding` holds."""


def is_about_an_encoding(error):
    """Whether an error arose because a tokenizer's output was taken for ids."""
    frames = traceback.extract_tb(error.__traceback__)
    asked = frames and frames[-1].name == "__getattr__" and frames[-1].filename.endswith("tokenization_utils_base.py")
    return bool(asked) or any(word in str(error) for word in ("BatchEncoding", "tokenizers.Encoding"))


def merge_newlines(tokenizer):
    """A copy of the tokenizer for which "\\n\\n" is one token, as it is for Qwen's own.

    The number of tokens stays, so that the model takes its ids: the last merge that was learned is
    given up, and its id is the new token's.
    """
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = data["model"]["vocab"], data["model"]["merges"]
    vocabulary["ĊĊ"] = vocabulary.pop("".join(merges[-1]))
    merges[-1] = ["Ċ", "Ċ"]
    # its own lists of all tokens, which take long to copy, are not used after it is made
    shared = [part for part in vars(tokenizer).values() if isinstance(part, dict | list) and len(part) > 1000]
    memo = {id(part): part for part in shared}
    memo[id(tokenizer._tokenizer)] = Tokenizer.from_str(json.dumps(data))
    return copy.deepcopy(tokenizer, memo)


def add_before_texts(tokenizer, token):
    """From now on the tokenizer puts that token before any text, unless it is told not to; None: no token."""
    adds = [(token, tokenizer.convert_tokens_to_ids(token))] if token else []
    begins = f"{token} $A" if token else "$A"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=begins, special_tokens=adds)


def template_ids(tokenizer, messages, with_prompt=True):
    """The ids of the tokenizer's chat template, by default with the generation prompt."""
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=with_prompt, return_dict=False))
