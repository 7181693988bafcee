"""`make bench PEERS=1`: the client and the arithmetic. That servers start is seen when it runs."""

import json
import socket
import threading

import pytest

from course import peers, peers_client


@pytest.fixture
def answering():
    """Serves a raw answer to each request on a loopback socket; gives the port for it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(pieces):
        def run():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(65_536)
                    for piece in pieces:
                        client.sendall(piece)

        threading.Thread(target=run, daemon=True).start()
        return listener.getsockname()[1]

    yield serve
    listener.close()


def chunked(*parts):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%s\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n"]


def event(text=None, reason=None):
    chunk = {"choices": [{"delta": {"content": text} if text else {}, "finish_reason": reason}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def test_the_client_reads_streams_however_they_are_cut(answering):
    whole = event("a") + event("b ") + event(reason="length")
    port = answering(chunked(event(), whole[:30], whole[30:70], whole[70:], b": ping\n\ndata: [DONE]\n\n"))
    found = peers_client.load(port, "/", {}, clients=3, requests=2)
    assert found["problems"] == [] and found["texts"] == ["ab "]
    assert len(found["ttft_s"]) == len(found["gaps_s"]) == 6 and found["reasons"] == ["length"] * 6
    assert 0 < max(found["ttft_s"]) <= found["seconds"]


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([b"HTTP/1.1 503 Service Unavailable\r\n\r\nno place"], "503"),
        (chunked(b'data: {"error": {"message": "it failed"}}\n\n'), "it failed"),
        (chunked(event(reason="stop")), "without text"),
        (chunked(event("a"))[:-1], ""),
    ],
)
def test_the_client_says_what_went_wrong(answering, pieces, says):
    found = peers_client.load(answering(pieces), "/", {}, clients=1, requests=1)
    assert len(found["problems"]) == 1 and says in found["problems"][0]


def test_ratios_are_those_of_the_same_round():
    rows = [
        {"server": server, "clients": 4, "round": number, "texts": ["a"], **dict.fromkeys(peers.FIGURES, value)}
        for server, values in ((peers.OURS, [1.0, 20.0, 300.0]), (peers.SERVE, [2.0, 10.0, 100.0]))
        for number, value in enumerate(values, 1)
    ]
    found = peers.summary(rows)
    assert [row["tokens_per_s"] for row in found["servers"]] == [20.0, 10.0] and found["texts"] == ["a"]
    [ratio] = found["ratios"]
    assert ratio["server"] == f"{peers.OURS} / {peers.SERVE}" and ratio["tokens_per_s"] == 2.0


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (19, 19), (20, 19), (40, 38), (100, 95)])
def test_p95_is_not_exceeded_by_95_percent(count, expected):
    assert peers.p95(range(count, 0, -1)) == expected
