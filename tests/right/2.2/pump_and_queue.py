# a right answer: a task that reads the model into a bounded queue, a response class of its own
import asyncio
import json

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from starlette.responses import Response


class Body(BaseModel):
    prompt: str = Field(min_length=1, max_length=4000)
    max_new_tokens: int = Field(128, ge=1, le=1024)
    temperature: float = Field(0.0, ge=0, le=2)


class Events(Response):
    media_type = "text/event-stream"

    def __init__(self, first, queue, pump):
        self.first, self.queue, self.pump = first, queue, pump
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-store"})
        del self.headers["content-length"]

    async def __call__(self, scope, receive, send):
        async def gone():
            while (await receive())["type"] != "http.disconnect":
                pass

        sending = asyncio.create_task(self.send_all(send))
        leaving = asyncio.create_task(gone())
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving, self.pump):
                task.cancel()
            await asyncio.gather(sending, leaving, self.pump, return_exceptions=True)

    async def send_all(self, send):
        async def write(lines, more=True):
            text = "".join(line + "\n" for line in lines)
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        kind, value = self.first
        number = 0
        while kind == "piece":
            number += 1
            await write([f"id: {number}", f"data: {json.dumps({'token': value})}", ""])
            kind, value = await self.queue.get()
        if kind == "failed":
            message = json.dumps({"message": str(value)})
            await write(["event: error", f"data: {message}", ""], more=False)
        else:
            done = json.dumps({"pieces": number}, indent=1).split("\n")
            await write(["event: done", *(f"data: {line}" for line in done), ""], more=False)


def create_app(handler):
    app = FastAPI()

    async def pump(body, queue):
        pieces = handler.generate(
            body.prompt,
            stream=True,
            max_new_tokens=body.max_new_tokens,
            temperature=body.temperature,
        )
        try:
            async for piece in pieces:
                await queue.put(("piece", piece))
            await queue.put(("done", None))
        except Exception as error:
            await queue.put(("failed", error))
        finally:
            await pieces.aclose()

    @app.post("/chat_stream")
    async def chat_stream(body: Body):
        queue = asyncio.Queue(maxsize=4)
        task = asyncio.create_task(pump(body, queue))
        first = await queue.get()
        if first[0] == "failed":
            raise HTTPException(500, "the model failed")
        return Events(first, queue, task)

    return app
