# a right answer: fastapi.sse with the first piece fetched by an ordinary dependency
from fastapi import Depends, FastAPI, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field


class Prompt(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)


def create_app(handler):
    app = FastAPI()

    async def opened(body: Prompt):
        answer = handler.generate(
            prompt=body.prompt,
            stream=True,
            max_new_tokens=body.max_new_tokens,
            temperature=body.temperature,
        )
        head = []
        try:
            head.append(await answer.__anext__())
        except StopAsyncIteration:
            pass
        except Exception as error:
            raise HTTPException(502, "the model could not begin") from error
        return head, answer

    @app.post("/chat_stream", response_class=EventSourceResponse)
    async def chat_stream(answer=Depends(opened)):
        head, rest = answer
        n = 0
        try:
            for token in head:
                n += 1
                yield {"token": token}
            async for token in rest:
                n += 1
                yield {"token": token}
        except Exception as error:
            yield ServerSentEvent(event="error", data={"message": f"the model broke off: {error}"})
            return
        finally:
            await rest.aclose()
        yield ServerSentEvent(event="done", data={"pieces": n})

    return app
