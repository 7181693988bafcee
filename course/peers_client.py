"""Clients of a chat server by raw sockets: the load of `course.peers`, in a process of its own.

Whoever measures must not be slower than what is measured: while answers come, what arrives is only kept with its
time; it is read when all is over. Each line of standard input is a job as JSON, answered by one line.

    {"port", "path", "body", "clients", "requests"}   so many at once, each so many times, one after the other
    {"seconds", "ttft_s", "gaps_s", "reasons", "texts", "problems"}

`ttft_s` has the time from a request to its first text, for each; `gaps_s` those between two events with text of one
answer, of all answers. (An event may hold more than one token.)

Not covered: TLS, redirects, bodies that are not chunked.
"""

import bisect
import json
import selectors
import socket
import sys
import time

SILENCE_S = 120


class Answer:
    def __init__(self, port, request):
        self.came = []
        self.began = time.perf_counter()
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request)
        self.socket.setblocking(False)

    def take(self):
        """Keeps what has come; whether the answer is over."""
        try:
            data = self.socket.recv(65_536)
        except ConnectionError:
            data = b""
        self.came.append((time.perf_counter(), data))
        return not data or data.endswith(b"0\r\n\r\n")

    def read(self):
        """(seconds to the first text, gaps, finish_reason, text); problems are a ValueError."""
        whole = b"".join(data for _, data in self.came)
        head, _, rest = whole.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0] + b" ":
            raise ValueError((head[:40] + b" ... " + rest[-200:]).decode("utf-8", "replace"))
        ends, times, length = [], [], 0
        for at, data in self.came:
            length += len(data)
            ends.append(length)
            times.append(at)
        texts, arrived, reason, unread = [], [], None, b""
        at = len(head) + 4
        while size := int(whole[at : (line := whole.index(b"\r\n", at))], 16):
            end = line + 2 + size
            unread += whole[line + 2 : end].replace(b"\r\n", b"\n")
            *events, unread = unread.split(b"\n\n")
            for event in events:
                found = _choice(event)
                if text := found.get("delta", {}).get("content"):
                    texts.append(text)
                    arrived.append(times[bisect.bisect_left(ends, end)])
                reason = found.get("finish_reason") or reason
            at = end + 2
        if not texts:
            raise ValueError("an answer without text")
        return (
            arrived[0] - self.began,
            [b - a for a, b in zip(arrived, arrived[1:], strict=False)],
            reason,
            "".join(texts),
        )


def _choice(event):
    if not event.startswith(b"data: {"):
        return {}
    chunk = json.loads(event[6:])
    if "error" in chunk:
        raise ValueError(str(chunk["error"]))
    return (chunk.get("choices") or [{}])[0]


def load(port, path, body, clients, requests):
    body = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    selector, answers, last = selectors.DefaultSelector(), [], 0.0

    def ask(left):
        answer = Answer(port, request)
        answers.append(answer)
        selector.register(answer.socket, selectors.EVENT_READ, (answer, left - 1))

    began = time.perf_counter()
    for _ in range(clients):
        ask(requests)
    while selector.get_map():
        ready = selector.select(SILENCE_S)
        if not ready:
            return {"problems": [f"nothing came for {SILENCE_S} s"]}
        for key, _ in ready:
            answer, left = key.data
            if answer.take():
                last = answer.came[-1][0]
                selector.unregister(answer.socket)
                answer.socket.close()
                if left:
                    ask(left)
    found = {"seconds": last - began, "ttft_s": [], "gaps_s": [], "reasons": [], "texts": [], "problems": []}
    for answer in answers:
        try:
            ttft, gaps, reason, text = answer.read()
        except (ValueError, IndexError) as problem:
            found["problems"].append(str(problem))
            continue
        found["ttft_s"].append(ttft)
        found["gaps_s"] += gaps
        found["reasons"].append(reason)
        found["texts"].append(text)
    found["texts"] = sorted(set(found["texts"]))
    return found


def main():
    for line in sys.stdin:
        print(json.dumps(load(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
