"""Exercise 4.4: the same endpoint, in several copies that may run on several machines."""

from chat_completions import create_app


def build(load, *, replicas=2, max_ongoing_requests=16):
    """Create a Ray Serve application that serves exercise 3.7's endpoint in `replicas` copies.

        serve.run(build(load, replicas=3))      # one address, three processes behind it

    Each copy is a separate process, on whichever of Ray's machines has room for it. It calls `load` once, in its
    own process, when it starts; `serve.run` returns when all copies have done so. `build` itself loads nothing,
    and neither does any request.

    The address answers POST /v1/chat/completions and GET /v1/models as the app from 3.7 does, whole or streamed
    piece by piece, and with the same errors. When a client leaves, the model stops working on its answer.

    Each copy is given at most `max_ongoing_requests` requests at a time, streamed or not. Requests beyond what all
    the copies take together wait, or get a 503. A copy asks Ray for at most one CPU.

    Args:
        load: returns an object with 3.6's `chat`. It is a function from a module that the copies can import, just
            as they can import `chat_completions` and this module.
        replicas: the number of copies, at least 1.
        max_ongoing_requests: at least 1.

    Returns:
        The `ray.serve.Application`, not yet running.

    Example:
        >>> serve.run(build(load))
        >>> httpx.get("http://127.0.0.1:8000/v1/models").json()["data"][0]["id"]
        'tiny-qwen'
    """
    # imported here, so that this module also loads where Ray is not installed
    from ray import serve

    # created here, started in each copy: the lifespan, which loads, runs in the process that serves the app
    app = create_app(load)

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=max_ongoing_requests)
    @serve.ingress(app)
    class ChatCompletions:
        """Nothing of its own: the app answers."""

    return ChatCompletions.bind()
