# caught by: test_post_chat_answers, test_start_up_loads_the_model_once, test_text_reaches_chat_unchanged, test_a_text_has_1_to_4000_code_points, test_no_history_is_kept, test_health_answers_while_the_model_works, test_64_requests_at_once_get_their_answers, test_after_an_error_the_next_request_is_answered | says: POST /chat does not answer 200
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.tokenizer, app.state.model = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def ask(body: Body):
        try:
            reply, _ = await asyncio.to_thread(
                chat, app.state.model, app.state.tokenizer, body.text
            )
        except Exception:
            raise HTTPException(500, "sorry") from None
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
