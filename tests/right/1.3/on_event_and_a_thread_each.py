# a right answer: a startup handler instead of lifespan, a thread for each request, an event to wait on
import asyncio
import sys
import threading

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, field_validator


class ChatRequest(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def check_length(cls, text):
        if not text or len(text) > 4000:
            raise ValueError("text must have 1 to 4000 characters")
        return text


def create_app(load, chat):
    app = FastAPI()
    lock = threading.Lock()

    @app.on_event("startup")
    def startup():
        app.state.model, app.state.tokenizer = load()

    @app.post("/chat")
    async def post_chat(request: ChatRequest):
        loop = asyncio.get_running_loop()
        done, box = asyncio.Event(), {}

        def run():
            try:
                with lock:
                    box["reply"] = chat(app.state.model, app.state.tokenizer, request.text, [])[0]
            except Exception as error:
                print(f"no answer: {error!r}", file=sys.stderr)
            finally:
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=run, daemon=True).start()
        await done.wait()
        if "reply" not in box:
            raise HTTPException(500, {"message": "no answer"})
        return {"result": box["reply"]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
