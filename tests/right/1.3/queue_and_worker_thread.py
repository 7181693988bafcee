# a right answer: one worker thread takes the requests from a queue; each has a future of its own
import asyncio
import queue
import threading
from concurrent.futures import Future
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, constr


class Body(BaseModel):
    text: constr(min_length=1, max_length=4000)


class Worker(threading.Thread):
    def __init__(self, load, chat):
        super().__init__(daemon=True)
        self.load, self.chat = load, chat
        self.jobs = queue.Queue()
        self.ready = threading.Event()

    def run(self):
        model, tokenizer = self.load()
        self.ready.set()
        while (job := self.jobs.get()) is not None:
            text, future = job
            try:
                future.set_result(self.chat(model, tokenizer, text)[0])
            except Exception as error:
                future.set_exception(error)

    def ask(self, text):
        future = Future()
        self.jobs.put((text, future))
        return future


def create_app(load, chat):
    worker = Worker(load, chat)

    @asynccontextmanager
    async def lifespan(app):
        worker.start()
        while not worker.ready.is_set():
            await asyncio.sleep(0.001)
        yield
        worker.jobs.put(None)

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(Exception)
    async def failed(request, error):
        return JSONResponse({"error": "the model could not answer"}, status_code=500)

    @app.post("/chat")
    async def post_chat(body: Body):
        return {"result": await asyncio.wrap_future(worker.ask(body.text))}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
