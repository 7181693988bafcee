"""A router, and endpoints whose signature is written for FastAPI to read."""

import inspect
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import anyio
import uvicorn
from fastapi import APIRouter, Body, FastAPI, Request
from four_actions import ConfigHandler, RequestHandler
from respond import respond

waiting = []


class HandlerFactory:
    @classmethod
    def register_handler(cls, path, config_class, handler_class, *, request_context=None, response_context=None):
        if not path.startswith("/"):
            raise ValueError(path + " does not begin with /")
        if path in [each[0] for each in waiting]:
            raise ValueError(path + " is there already")
        if not inspect.isclass(config_class) or ConfigHandler not in config_class.__mro__:
            raise TypeError(getattr(config_class, "__name__", "") + f" ({config_class!r}) is no ConfigHandler")
        if not inspect.isclass(handler_class) or RequestHandler not in handler_class.__mro__:
            raise TypeError(getattr(handler_class, "__name__", "") + f" ({handler_class!r}) is no RequestHandler")
        waiting.append((path, config_class, handler_class, request_context, response_context))


class Service:
    """A path's part of the app."""

    def __init__(self, configs, config_class, handler_class, request_context, response_context):
        self.configs, self.config_class, self.handler_class = configs, config_class, handler_class
        self.response_context = response_context
        kind = Annotated[request_context or Any, Body()]
        parameters = [
            inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request),
            inspect.Parameter("data", inspect.Parameter.KEYWORD_ONLY, annotation=kind),
        ]
        self.__signature__ = inspect.Signature(parameters)
        self.__name__ = handler_class.__name__

    async def __call__(self, *, request, data):
        config = self.configs[self.config_class]
        return await respond(self.handler_class(config), data, request, self.response_context)


def create_app() -> FastAPI:
    global waiting
    if waiting == []:
        raise ValueError("nothing to serve")
    mine, waiting = waiting, []
    configs, router = {}, APIRouter()
    for path, config_class, *rest in mine:
        service = Service(configs, config_class, *rest)
        router.add_api_route(path, service, methods=["POST"], response_model=rest[-1])

    @asynccontextmanager
    async def lifespan(app):
        async with AsyncExitStack() as stack:
            for _, config_class, *_ in mine:
                if config_class in configs:
                    continue
                configs[config_class] = await stack.enter_async_context(initialised(config_class))
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    return app


@asynccontextmanager
async def initialised(config_class):
    config = config_class()
    await either(config.initialize)
    try:
        yield config
    finally:
        await either(config.close)


async def either(action):
    if inspect.iscoroutinefunction(action):
        return await action()
    return await anyio.to_thread.run_sync(action)


def start_app(*, host="127.0.0.1", port=8000) -> FastAPI:
    uvicorn.run(app := create_app(), host=host, port=port)
    return app
