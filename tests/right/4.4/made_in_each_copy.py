"""The app is made in each copy by a builder, which Ray Serve calls there."""

import chat_completions
from ray import serve


def build(load, *, replicas=2, max_ongoing_requests=16):
    def endpoint():
        return chat_completions.create_app(load)

    ingress = serve.ingress(endpoint)
    options = {"num_replicas": replicas, "max_ongoing_requests": max_ongoing_requests}
    return serve.deployment(ingress(), **options).bind()
