# caught by: test_what_does_not_exist_is_a_file_not_found_error, test_a_folder_loads_however_its_path_is_written | says: raises OSError instead of FileNotFoundError
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32)
    return model.eval(), tokenizer
