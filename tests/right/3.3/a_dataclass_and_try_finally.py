"""Registrations as dataclasses in a class attribute; a lifespan with a list and a finally."""

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import Body, FastAPI, Request
from four_actions import ConfigHandler, RequestHandler
from respond import respond


@dataclass
class Registration:
    path: str
    config_class: type
    handler_class: type
    request_context: type | None
    response_context: type | None


class HandlerFactory:
    registrations = []

    @classmethod
    def register_handler(cls, path, config_class, handler_class, *, request_context=None, response_context=None):
        if not str(path).startswith("/"):
            raise ValueError(f"the path {path} has to begin with a slash")
        if any(each.path == path for each in cls.registrations):
            raise ValueError(f"the path {path} has been registered before")
        cls.check(config_class, ConfigHandler)
        cls.check(handler_class, RequestHandler)
        cls.registrations.append(
            Registration(path, config_class, handler_class, request_context, response_context)
        )

    @staticmethod
    def check(given, wanted):
        try:
            if issubclass(given, wanted):
                return
        except TypeError:
            raise TypeError(f"no class: {given!r}") from None
        raise TypeError(f"{given.__qualname__} does not derive from {wanted.__name__}")


def create_app() -> FastAPI:
    registrations, HandlerFactory.registrations = HandlerFactory.registrations, []
    if not registrations:
        raise ValueError("there is no registration")
    order = list(dict.fromkeys(each.config_class for each in registrations))

    @asynccontextmanager
    async def lifespan(app):
        app.state.configs, done = {}, []
        try:
            for kind in order:
                app.state.configs[kind] = kind()
            for kind in order:
                await call(app.state.configs[kind].initialize)
                done.append(app.state.configs[kind])
            yield
        finally:
            while done:
                try:
                    await call(done.pop().close)
                except Exception:
                    logging.exception("a config could not be closed")

    app = FastAPI(lifespan=lifespan)
    for each in registrations:
        add(app, each)
    return app


async def call(action):
    if asyncio.iscoroutinefunction(action):
        await action()
    else:
        await asyncio.to_thread(action)


def add(app, registration):
    if registration.request_context:

        @app.post(registration.path, response_model=registration.response_context)
        async def answer(body: registration.request_context, request: Request):
            return await run(body, request)

    else:

        @app.post(registration.path, response_model=registration.response_context)
        async def answer_any(request: Request, body: Any = Body(...)):
            return await run(body, request)

    async def run(body, request):
        config = request.app.state.configs[registration.config_class]
        handler = registration.handler_class(config)
        return await respond(handler, body, request, registration.response_context)


def start_app(*, host="127.0.0.1", port=8000) -> FastAPI:
    app = create_app()
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port))
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    return app
