# caught by: test_each_piece_is_an_event, test_each_piece_is_sent_as_soon_as_it_is_there, test_done_says_how_many_pieces_there_were, test_any_text_survives, test_no_pieces_is_an_answer_too, test_what_is_asked_reaches_the_handler, test_streams_do_not_wait_for_each_other, test_an_error_before_the_first_piece_is_no_stream, test_an_error_after_the_first_piece_is_an_event, test_after_an_error_the_next_request_works, test_the_model_stops_when_the_client_leaves, test_the_model_stops_when_the_client_left_early, test_who_leaves_disturbs_no_other | says: TypeError: object async_generator can't be used in 'await' expression
import json

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)


def create_app(handler):
    app = FastAPI()

    @app.post("/chat_stream")
    async def chat_stream(body: Body):
        async def events():
            count = 0
            async for piece in await handler.generate(
                body.prompt,
                stream=True,
                max_new_tokens=body.max_new_tokens,
                temperature=body.temperature,
            ):
                yield f"data: {json.dumps({'token': piece})}\n\n"
                count += 1
            yield f"event: done\ndata: {json.dumps({'pieces': count})}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
