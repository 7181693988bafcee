# caught by: test_start_up_loads_the_model_once | says: start-up does not call load
from fastapi import Depends, FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    app = FastAPI()

    def loaded():
        return load()

    @app.post("/chat")
    def ask(body: Body, parts=Depends(loaded)):
        reply, _ = chat(parts[0], parts[1], body.text)
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
