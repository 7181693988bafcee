# a right answer: the body is read as a stream and parsed as bytes; one kind of ChatError for each trouble
import json

import httpx


class ChatError(Exception):
    pass


class NoServer(ChatError):
    pass


class Refused(ChatError):
    def __init__(self, status, body):
        self.status = status
        super().__init__(f"[{status}] {self.words(status, body)}")

    @staticmethod
    def words(status, body):
        text = body.decode("utf-8", errors="replace")
        try:
            detail = json.loads(text)["detail"]
            return detail if isinstance(detail, str) else "\n".join(p["msg"] for p in detail)
        except (ValueError, LookupError, TypeError):
            return text


def ask(base_url, text, *, timeout_s=60.0):
    request = httpx.Request("POST", f"{base_url.rstrip('/')}/chat", json={"text": text})
    request.extensions["timeout"] = httpx.Timeout(timeout_s).as_dict()
    body = bytearray()
    with httpx.Client() as client:
        try:
            response = client.send(request, stream=True)
            try:
                for piece in response.iter_bytes():
                    body += piece
            finally:
                response.close()
        except httpx.ConnectError as error:
            raise NoServer(f"nobody answers at {base_url}") from error
        except httpx.RequestError as error:
            raise ChatError(f"{type(error).__name__} while waiting for {base_url}") from error
    if response.status_code >= 400:
        raise Refused(response.status_code, bytes(body))
    try:
        data = json.loads(bytes(body))
    except ValueError:
        raise ChatError("the server's answer is not JSON") from None
    if not isinstance(data, dict) or not isinstance(data.get("result"), str):
        raise ChatError(f"the server's answer has no result: {data!r}")
    return data["result"]
