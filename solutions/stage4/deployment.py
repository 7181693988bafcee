"""Exercise 4.4: the same endpoint, in several copies that may stand on several machines."""

from chat_completions import create_app


def build(load, *, replicas=2, max_ongoing_requests=16):
    """Make an application of Ray Serve that answers exercise 3.7's endpoint in `replicas` copies.

        serve.run(build(load, replicas=3))      # one address, three processes behind it

    A copy is a process of its own, on whichever of Ray's machines has room for it. Each calls `load` once, in its
    own process, when it starts: `serve.run` returns when all have. `build` itself loads nothing, and no request
    does.

    The address answers POST /v1/chat/completions and GET /v1/models as the app of 3.7 does: in one piece or
    streamed, piece by piece, with its errors. When a client leaves, its answer's model stops.

    Each copy is given at most `max_ongoing_requests` requests at a time, whether they are streamed or not. More
    than the copies take together wait, or are answered with a 503. A copy asks Ray for at most one CPU.

    Args:
        load: gives an object with 3.6's `chat`. It is a function of a module that the copies can import, as they
            can import `chat_completions` and this module.
        replicas: how many copies there are, at least 1.
        max_ongoing_requests: at least 1.

    Returns:
        The `ray.serve.Application`, not yet running.

    Example:
        >>> serve.run(build(load))
        >>> httpx.get("http://127.0.0.1:8000/v1/models").json()["data"][0]["id"]
        'tiny-qwen'
    """
    # here, so that this module can be read where Ray is not installed
    from ray import serve

    # made here, started in each copy: an app's lifespan, which loads, belongs to the process that serves it
    app = create_app(load)

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=max_ongoing_requests)
    @serve.ingress(app)
    class ChatCompletions:
        """Nothing of its own: the app answers."""

    return ChatCompletions.bind()
