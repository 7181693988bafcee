"""How the tiny Qwen in `course/qwen/tiny/` is made.

    python -m course.qwen.making.train       train it from scratch into work/tiny_qwen; --device cuda on a GPU
    python -m course.qwen.making.evaluate    measure it, or the checkpoint that you name, against its bars

`corpus.py` reads `facts.toml`, `talk.toml` and `phrasings.toml`, `conversations.py` draws conversations from
them, and `tokenizer.py` learns the tokenizer from those. Nothing that uses the model imports any of this.
"""
