"""The app that 2.5's tests have served: it reports which process answers, and holds that process.

A request makes the process report to COURSE_CONTROL and then wait there, its event loop blocked, so
that the next request can only be taken by another process. Who builds the app reports that, too.
`GET /stream` is answered with words, one every 0.05 seconds, until the client leaves.
"""

import asyncio
import json
import os
import socket

import sitecustomize


def build():
    return _make("build")


def another():
    return _make("another")


def _make(name):
    sitecustomize.built.append(os.getpid())
    with _told({"built_by": os.getpid()}):
        pass

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                event = await receive()
                await send({"type": event["type"] + ".complete"})
                if event["type"] == "lifespan.shutdown":
                    return
        if scope["path"] == "/stream":
            await _stream(receive, send)
            return
        _report_and_wait(f"{__name__}:{name}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


def _report_and_wait(factory):
    report = {"pid": os.getpid(), "factory": factory, "built_in": sitecustomize.built}
    with _told(report) as control:
        control.recv(1)


def _told(report):
    control = socket.create_connection(("127.0.0.1", int(os.environ["COURSE_CONTROL"])))
    control.sendall(json.dumps(report).encode() + b"\n")
    return control


async def _stream(receive, send):
    async def until_the_client_leaves():
        while (await receive())["type"] != "http.disconnect":
            pass

    left = asyncio.create_task(until_the_client_leaves())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not left.done():
        await send({"type": "http.response.body", "body": b"word ", "more_body": True})
        await asyncio.sleep(0.05)
