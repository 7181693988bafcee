# a right answer: one client for all calls, the answers' shapes as pydantic models
import httpx
from pydantic import BaseModel, StrictStr, ValidationError


class ChatError(Exception):
    pass


class Answer(BaseModel):
    result: StrictStr


class Detail(BaseModel):
    detail: StrictStr


class Problem(BaseModel):
    msg: str


class Problems(BaseModel):
    detail: list[Problem]


_client = httpx.Client(transport=httpx.HTTPTransport(retries=0))


def ask(base_url, text, *, timeout_s=60.0):
    url = httpx.URL(base_url.rstrip("/") + "/chat")
    try:
        response = _client.post(url, json={"text": text}, timeout=timeout_s)
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise ChatError(f"{base_url} did not answer: {error}") from error
    if not response.is_success:
        raise ChatError(f"{response.status_code} from {base_url}: {_said(response)}")
    try:
        return Answer.model_validate_json(response.content).result
    except ValidationError as error:
        raise ChatError(f"not an answer: {response.content!r}") from error


def _said(response):
    for shape in (Detail, Problems):
        try:
            detail = shape.model_validate_json(response.content).detail
        except ValidationError:
            continue
        return detail if isinstance(detail, str) else "; ".join(each.msg for each in detail)
    return response.text
