"""Exercise 3.3: from classes to a running service, with one registration per path."""

import inspect
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Request
from four_actions import ConfigHandler, RequestHandler
from respond import respond

_registered = {}


class HandlerFactory:
    """Where a module registers which classes answer which path.

    Example:
        >>> HandlerFactory.register_handler("/chat", ChatConfig, ChatHandler, request_context=Question)
        >>> app = create_app()
    """

    @classmethod
    def register_handler(cls, path, config_class, handler_class, *, request_context=None, response_context=None):
        """Record that `handler_class` answers `POST path`, with a config made from `config_class`.

        It only makes a note: nothing is created, loaded or called. So you can call it at the top level of
        a module that many processes import.

        Args:
            path: starts with "/".
            config_class: a subclass of `ConfigHandler`.
            handler_class: a subclass of `RequestHandler`.
            request_context: a pydantic model of the request's body, or None to accept any JSON.
            response_context: a pydantic model of the response, or None; see `respond`. What happens if a
                context is not a model is left to you.

        Raises:
            ValueError: the path does not start with "/", or is already registered. The message contains
                the path.
            TypeError: `config_class` or `handler_class` is not a subclass of its base class above. The
                message contains its name or, if it is not a class, its `repr`.

        A registration that is refused leaves nothing behind.
        """
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError(f"a path begins with /, and {path!r} does not")
        if path in _registered:
            raise ValueError(f"{path} is already registered")
        for given, base in ((config_class, ConfigHandler), (handler_class, RequestHandler)):
            if not inspect.isclass(given):
                raise TypeError(f"{given!r} is not a class: a subclass of {base.__name__} is needed")
            if not issubclass(given, base):
                raise TypeError(f"{given.__name__} is not a subclass of {base.__name__}")
        _registered[path] = (config_class, handler_class, request_context, response_context)


def create_app() -> FastAPI:
    """Make the app from everything registered since the last `create_app()`.

    Afterwards the registry is empty, so that a second app, a test or a cell that runs again starts from
    scratch. Two apps share nothing. None of the registered classes is called at this point.

    When the app starts, each config class is instantiated and initialised once, no matter how many paths
    use it, in the order of registration, before any request is answered. Two classes with the same name
    are two classes. If a config fails in `__init__` or `initialize`, so does the start-up, and the
    configs initialised before it are closed; whether the failed one is closed, too, is left to you. At
    shutdown, each config is closed once, in reverse order, even if the `close` of another one raises.
    `initialize` and `close` may be `def` or `async def`. You can assume that an app is started only once.

    For each `POST path`, the app makes a new handler, `handler_class(config)`, and responds as `respond` of
    exercise 3.2 does. With a `request_context`, a body that does not fit gets a 422, and no action is
    called; a body that fits reaches `pre_process` as an instance of the model. Without one, `pre_process`
    gets the JSON value, and a body that is not JSON, or a missing body, gets a 422 (or a 400 if it is not
    even text).
    What happens with `null`, or with a `Content-Type` other than JSON, is left to you. The OpenAPI
    document shows both models: as the request's body, and as the 200 response.

    Raises:
        ValueError: nothing has been registered.
    """
    if not _registered:
        raise ValueError("nothing is registered: call HandlerFactory.register_handler first")
    handlers = dict(_registered)
    _registered.clear()
    configs = {}

    @asynccontextmanager
    async def lifespan(app):
        async with AsyncExitStack() as initialised:
            for config_class, *_ in handlers.values():
                if config_class not in configs:
                    config = configs[config_class] = config_class()
                    await _called(config.initialize)
                    initialised.push_async_callback(_called, config.close)
            yield

    app = FastAPI(lifespan=lifespan)
    for path, (config_class, handler_class, request_context, response_context) in handlers.items():
        endpoint = _endpoint(configs, config_class, handler_class, request_context, response_context)
        app.add_api_route(path, endpoint, methods=["POST"], response_model=response_context)
    return app


def start_app(*, host="127.0.0.1", port=8000) -> FastAPI:
    """Make the app, serve it until Ctrl-C, and return it.

    When it returns, all configs are closed. SIGTERM closes them, too, and may then end the process. How
    long answers that are still streaming delay either of these is left to you.

    Args:
        host, port: where to listen.

    Raises:
        ValueError: nothing has been registered.
    """
    app = create_app()
    # without a limit, an answer that is still streaming would keep the server running
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=5)
    return app


def _endpoint(configs, config_class, handler_class, request_context, response_context):
    kind = Any if request_context is None else request_context

    async def endpoint(request: Request, request_body: Annotated[kind, Body()]):
        return await respond(handler_class(configs[config_class]), request_body, request, response_context)

    return endpoint


async def _called(method):
    result = method()
    if inspect.isawaitable(result):
        await result
