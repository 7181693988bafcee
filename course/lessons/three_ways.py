"""Three servers in one process, to measure: the same model, and three ways to wait for it.

    POST /blocking/chat_stream     an `async def` that waits for the model itself
    POST /threads/chat_stream      a thread for each request
    POST /one-thread/chat_stream   one thread for all: the reference answers to 2.1 and 2.2
    POST /yours/chat_stream        the learner's answers, if they can be loaded
"""

import contextlib
import json
import threading

import torch
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer
from transformers.utils import logging

from course.lessons.parts import NotReady, load_parts
from course.qwen.models import model_path


class _Body(BaseModel):
    prompt: str
    max_new_tokens: int = 128


def build() -> FastAPI:
    """The app, with a model of its own. Only for measuring: no errors are handled, no leavers."""
    logging.set_verbosity_error()
    path = model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    app = FastAPI()

    def streamed(body):
        inputs = tokenizer.apply_chat_template(
            [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": body.prompt},
            ],
            add_generation_prompt=True, return_dict=True, return_tensors="pt",
        )
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        settings = {"max_new_tokens": body.max_new_tokens, "do_sample": False}
        work = threading.Thread(
            target=model.generate, kwargs={**inputs, **settings, "streamer": streamer}
        )
        work.start()
        return streamer

    def events(body):
        pieces = 0
        for piece in streamed(body):
            yield f"data: {json.dumps({'token': piece})}\n\n"
            pieces += 1
        yield f"event: done\ndata: {json.dumps({'pieces': pieces})}\n\n"

    async def blocking_events(body):
        for event in events(body):
            yield event

    @app.post("/blocking/chat_stream")
    async def blocking(body: _Body):
        return StreamingResponse(blocking_events(body), media_type="text/event-stream")

    @app.post("/threads/chat_stream")
    async def threads(body: _Body):
        return StreamingResponse(events(body), media_type="text/event-stream")

    for path, solution in (("/one-thread", True), ("/yours", False)):
        with contextlib.suppress(NotReady):
            handler, create_app = load_parts(
                {"2.1": "ModelHandler", "2.2": "create_app"}, solution=solution
            )
            app.mount(path, create_app(handler(model, tokenizer)))
    return app
