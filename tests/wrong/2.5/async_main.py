# caught by: test_main_serves_on_the_port_that_it_is_given | says: main is an async def that is never awaited
import asyncio

import uvicorn


async def main(port, workers, app="course.lessons.stage2:build"):
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, workers=workers, timeout_graceful_shutdown=1)


if __name__ == "__main__":
    asyncio.run(main(8000, 4))
