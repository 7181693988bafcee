"""Reads and validates the body itself, and writes both models into the OpenAPI document by hand."""

import contextlib
import inspect

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.encoders import jsonable_encoder
from four_actions import ConfigHandler, RequestHandler
from pydantic import ValidationError
from respond import respond


class HandlerFactory:
    _paths = {}

    @classmethod
    def register_handler(cls, path, config_class, handler_class, *, request_context=None, response_context=None):
        for given, base in ((config_class, ConfigHandler), (handler_class, RequestHandler)):
            if not (isinstance(given, type) and issubclass(given, base)):
                name = given.__name__ if isinstance(given, type) else repr(given)
                raise TypeError(f"{name} is not a {base.__name__}")
        if path[:1] != "/" or path in cls._paths:
            raise ValueError(f"not a new path that begins with /: {path!r}")
        cls._paths[path] = dict(
            config_class=config_class,
            handler_class=handler_class,
            request_context=request_context,
            response_context=response_context,
        )


def create_app() -> FastAPI:
    if not HandlerFactory._paths:
        raise ValueError("register a handler first")
    app = App(HandlerFactory._paths.copy())
    HandlerFactory._paths.clear()
    return app


class App(FastAPI):
    def __init__(self, paths):
        super().__init__(lifespan=App.life)
        self.paths = paths
        self.configs = {}
        for path, registered in paths.items():
            self.add_route_for(path, registered)

    @contextlib.asynccontextmanager
    async def life(self):
        async with contextlib.AsyncExitStack() as stack:
            for registered in self.paths.values():
                kind = registered["config_class"]
                if kind in self.configs:
                    continue
                config = kind()
                done = config.initialize()
                if inspect.iscoroutine(done):
                    await done
                self.configs[kind] = config
                if inspect.iscoroutinefunction(config.close):
                    stack.push_async_callback(config.close)
                else:
                    stack.callback(config.close)
            yield

    def add_route_for(self, path, registered):
        model = registered["request_context"]
        extra = None
        if model is not None:
            schema = {"$ref": f"#/components/schemas/{model.__name__}"}
            extra = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
        responses = {}
        if registered["response_context"]:
            responses[200] = {"model": registered["response_context"]}

        async def endpoint(request: Request):
            try:
                body = await request.json()
            except ValueError as error:
                raise HTTPException(422, f"not JSON: {error}") from None
            if model is not None:
                try:
                    body = model.model_validate(body)
                except ValidationError as error:
                    raise HTTPException(422, jsonable_encoder(error.errors(include_context=False))) from None
            handler = registered["handler_class"](self.configs[registered["config_class"]])
            return await respond(handler, body, request, response_context=registered["response_context"])

        self.add_api_route(path, endpoint, methods=["POST"], openapi_extra=extra, responses=responses)

    def openapi(self):
        document = super().openapi()
        for registered in self.paths.values():
            model = registered["request_context"]
            if model is not None:
                schemas = document.setdefault("components", {}).setdefault("schemas", {})
                schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
        return document


def start_app(*, host="127.0.0.1", port=8000) -> FastAPI:
    app = create_app()
    uvicorn.run(app, host=host, port=port, log_level="warning")
    return app
