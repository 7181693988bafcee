"""An object for each app holds what it serves; configs are held beside their classes in a list."""

import inspect
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Request, Response
from four_actions import ConfigHandler, RequestHandler
from respond import respond


class Registry(list):
    def paths(self):
        return {each["path"] for each in self}


class HandlerFactory:
    registry = Registry()

    @classmethod
    def register_handler(cls, path, config_class, handler_class, *, request_context=None, response_context=None):
        problems = []
        if not isinstance(path, str) or not path.startswith("/"):
            problems.append(ValueError(f"{path!r} should start with '/'"))
        elif path in cls.registry.paths():
            problems.append(ValueError(f"{path!r} is taken"))
        for given, base in [(config_class, ConfigHandler), (handler_class, RequestHandler)]:
            if not inspect.isclass(given):
                problems.append(TypeError(f"expected a class, got {given!r}"))
            elif not issubclass(given, base):
                problems.append(TypeError(f"{given.__name__} should inherit from {base.__name__}"))
        if problems:
            raise problems[0]
        cls.registry.append(
            {
                "path": path,
                "config": config_class,
                "handler": handler_class,
                "request": request_context,
                "response": response_context,
            }
        )


class Life:
    def __init__(self, entries):
        self.entries = entries
        self.configs = []

    def of(self, kind):
        for known, config in self.configs:
            if known is kind:
                return config
        return None

    def __call__(self, app):
        return self

    async def __aenter__(self):
        try:
            for entry in self.entries:
                kind = entry["config"]
                if self.of(kind) is None:
                    config = kind()
                    if (waiting := config.initialize()) is not None:
                        await waiting
                    self.configs.append((kind, config))
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_):
        failed = None
        while self.configs:
            _, config = self.configs.pop()
            try:
                if (waiting := config.close()) is not None:
                    await waiting
            except Exception as error:
                failed = error
        if failed:
            raise failed


def create_app() -> FastAPI:
    entries = list(HandlerFactory.registry)
    HandlerFactory.registry.clear()
    if len(entries) == 0:
        raise ValueError("no handler has been registered since the last app")
    life = Life(entries)
    app = FastAPI(lifespan=life)
    for entry in entries:
        app.post(entry["path"], response_model=entry["response"])(endpoint_of(life, **entry))
    return app


def endpoint_of(life, path, config, handler, request, response):
    body_type = Any if request is None else request

    async def endpoint(http_request: Request, body: Annotated[body_type, Body()]) -> Response:
        return await respond(handler(life.of(config)), body, http_request, response)

    return endpoint


def start_app(*, host="127.0.0.1", port=8000) -> FastAPI:
    app = create_app()
    uvicorn.run(app, port=port, host=host)
    return app
