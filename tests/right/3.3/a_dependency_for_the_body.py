"""The handler is made by a dependency; the body's type comes from a function that makes endpoints."""

import asyncio
import contextlib
import inspect
import json

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from four_actions import ConfigHandler, RequestHandler
from respond import respond

registry = {}


class HandlerFactory:
    @classmethod
    def register_handler(cls, path, config_class, handler_class, *, request_context=None, response_context=None):
        must_be(config_class, ConfigHandler)
        must_be(handler_class, RequestHandler)
        if not path or path[0] != "/":
            raise ValueError(f"{path!r}: no slash in front")
        if registry.setdefault(path, None) is not None:
            raise ValueError(f"{path!r}: twice")
        registry[path] = config_class, handler_class, request_context, response_context


def must_be(given, base):
    if not isinstance(given, type):
        raise TypeError(f"{given!r} where a class is needed")
    if not issubclass(given, base):
        raise TypeError(f"{given.__name__} where a {base.__name__} is needed")


async def any_json(request: Request):
    try:
        return json.loads((await request.body()).decode())
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, [{"type": "json_invalid", "loc": ["body"], "msg": str(error)}]) from None


def create_app() -> FastAPI:
    global registry
    if not registry:
        raise ValueError("no handlers")
    entries, registry = registry, {}
    instances = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        started = []
        try:
            for config_class, *_ in entries.values():
                if not any(type(each) is config_class for each in instances):
                    config = config_class()
                    result = config.initialize()
                    if asyncio.iscoroutine(result):
                        await result
                    instances.append(config)
                    started.append(config)
            yield
        finally:
            errors = []
            for config in reversed(started):
                try:
                    result = config.close()
                    if asyncio.iscoroutine(result):
                        await result
                except Exception as error:
                    errors.append(error)
            if errors:
                raise errors[0]

    app = FastAPI(lifespan=lifespan)

    def mount(path, config_class, handler_class, request_context, response_context):
        def handler():
            return handler_class(next(each for each in instances if type(each) is config_class))

        if request_context is None:

            async def endpoint(request: Request, handler=Depends(handler), body=Depends(any_json)):
                return await respond(handler, body, request, response_context)

        else:

            async def endpoint(body, request: Request, handler=Depends(handler)):
                return await respond(handler, body, request, response_context)

            endpoint.__annotations__["body"] = request_context
        responses = {200: {"model": response_context}} if response_context else None
        app.post(path, responses=responses, name=inspect.getmodulename(path) or "root")(endpoint)

    for path, entry in entries.items():
        mount(path, *entry)
    return app


def start_app(*, host="127.0.0.1", port=8000) -> FastAPI:
    app = create_app()

    async def serve():
        await uvicorn.Server(uvicorn.Config(app, host=host, port=port, lifespan="on")).serve()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
    return app
