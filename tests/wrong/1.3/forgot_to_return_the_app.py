# caught by: test_post_chat_answers, test_health_says_ok, test_start_up_loads_the_model_once, test_text_reaches_chat_unchanged, test_a_text_has_1_to_4000_code_points, test_no_history_is_kept, test_health_answers_while_the_model_works, test_64_requests_at_once_get_their_answers, test_an_error_in_chat_is_a_plain_500, test_after_an_error_the_next_request_is_answered, test_other_bodies_are_422, test_health_answers_while_64_requests_wait | says: create_app has to return the FastAPI app, not NoneType
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body):
        reply, _ = chat(app.state.model, app.state.tokenizer, body.text)
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}
