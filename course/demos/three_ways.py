"""Servers to measure, all in one process: one model, and three ways to wait for its steps.

    POST /blocking/chat_stream     an `async def` that runs the steps itself
    POST /to-thread/chat_stream    each step in any thread of a pool: `await asyncio.to_thread`
    POST /one-thread/chat_stream   all steps in one thread, which belongs to the model
    POST /reference/chat_stream    the reference answers to 2.1 and 2.2
    POST /yours/chat_stream        the learner's answers to 2.1 and 2.2, if they can be built
    GET  /who                      {"pid": ...}

In the first three, responses have the id of the process in the header `process`.
"""

import asyncio
import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from course.answers import importable, load_all
from course.demos import copies
from course.qwen.models import model_path

PARTS = {"2.1": "ModelHandler", "2.2": "create_app"}
MODEL_THREAD = ThreadPoolExecutor(max_workers=1)


class Body(BaseModel):
    prompt: str
    max_new_tokens: int = 128


@torch.inference_mode()
def greedy_steps(model, tokenizer, prompt, max_new_tokens):
    """Run one greedy step of the model for each `next`, and yield the text that the step completes.

    It does not end before `max_new_tokens`: see `_never_ends`.
    """
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")[
        "input_ids"
    ]
    text, cache = DecodeStream(skip_special_tokens=True), None
    for _ in range(max_new_tokens):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = output.past_key_values, output.logits[:, -1].argmax(dim=-1, keepdim=True)
        # None as long as a character is incomplete
        yield text.step(tokenizer.backend_tokenizer, ids.item()) or ""


def blocking(app, steps):
    @app.post("/blocking/chat_stream")
    async def chat_stream(body: Body):
        async def events(pieces=0):
            for piece in steps(body):  # a step in the event loop's own thread
                if piece:
                    yield token(piece)
                    pieces += 1
            yield done(pieces)

        return stream(events())


def to_thread(app, steps):
    @app.post("/to-thread/chat_stream")
    async def chat_stream(body: Body):
        async def events(pieces=0):
            left = steps(body)
            while (piece := await asyncio.to_thread(next, left, None)) is not None:
                if piece:
                    yield token(piece)
                    pieces += 1
            yield done(pieces)

        return stream(events())


def one_thread(app, steps):
    @app.post("/one-thread/chat_stream")
    async def chat_stream(body: Body):
        async def events(pieces=0):
            left, loop = steps(body), asyncio.get_running_loop()
            while (piece := await loop.run_in_executor(MODEL_THREAD, next, left, None)) is not None:
                if piece:
                    yield token(piece)
                    pieces += 1
            yield done(pieces)

        return stream(events())


def token(piece):
    return f"data: {json.dumps({'token': piece})}\n\n"


def done(pieces):
    return f"event: done\ndata: {json.dumps({'pieces': pieces})}\n\n"


def stream(events):
    return StreamingResponse(events, headers={"process": str(os.getpid())}, media_type="text/event-stream")


def build() -> FastAPI:
    """The app, with its own model. It is only for measuring: it handles neither errors nor clients that leave."""
    logging.set_verbosity_error()
    path = model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    _never_ends(model, tokenizer)
    importable()
    handler_class, create_app = load_all(PARTS, solution=True)
    handler = handler_class(model, tokenizer)
    list(greedy_steps(model, tokenizer, "Hello!", 4))  # the first ones are slow
    app = FastAPI()
    app.get("/who")(copies.who)

    # all use the same steps, so they differ only in where a step runs
    for way in (blocking, to_thread, one_thread):
        way(app, lambda body: greedy_steps(model, tokenizer, body.prompt, body.max_new_tokens))
    app.mount("/reference", create_app(handler))
    # an unfinished answer, such as a stub that fails in __init__, must not stop the others
    with contextlib.suppress(Exception):
        own_class, create_own = load_all(PARTS)
        app.mount("/yours", create_own(own_class(model, tokenizer)))
    return app


def _never_ends(model, tokenizer):
    """Make each answer as long as it may be, so that all servers get the same amount of work."""
    controls = torch.tensor(list(tokenizer.added_tokens_decoder))

    def without_controls(module, inputs, logits):
        return logits.index_fill(-1, controls, -torch.inf)

    model.lm_head.register_forward_hook(without_controls)
