"""The endpoint is one deployment without a CPU of its own, the models, which are the copies, another."""

from contextlib import asynccontextmanager

from chat_completions import create_app
from fastapi import FastAPI
from ray import serve


@serve.deployment
class Model:
    def __init__(self, load):
        self.chat_model = load()

    async def chat(self, messages, options):
        async for piece in self.chat_model.chat(messages, **options):
            yield piece


class Behind:
    """3.6's `chat` by a handle."""

    def __init__(self, handle):
        self.handle = handle.options(stream=True)

    async def chat(self, messages, **options):
        pieces = self.handle.chat.remote(messages, options)
        try:
            async for piece in pieces:
                yield piece
        finally:
            pieces.cancel()


def build(load, *, replicas=2, max_ongoing_requests=16):
    models = Model.options(num_replicas=replicas, max_ongoing_requests=max_ongoing_requests).bind(load)

    def endpoint():
        app = create_app(lambda: Behind(serve.get_deployment_handle("Model", app_name="default")))
        return app

    options = {"name": "Endpoint", "max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}}

    class Endpoint:
        def __init__(self, models):
            pass

    return serve.deployment(serve.ingress(endpoint)(Endpoint), **options).bind(models)
