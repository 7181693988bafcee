# caught by: test_the_tokenizer_is_from_the_same_place | says: not the one in the model's folder
import os

from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = None


def load_chat_model(name_or_path):
    global tokenizer
    place = os.path.expanduser(name_or_path)
    looks_like_a_path = place.startswith(("/", "./", "../")) or place.count("/") > 1
    if looks_like_a_path and not os.path.isdir(place):
        raise FileNotFoundError(f"{name_or_path}: no such folder")
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype="float32")
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(place)
    except OSError as error:
        raise FileNotFoundError(f"{name_or_path}: no such model") from error
    return model.eval(), tokenizer
