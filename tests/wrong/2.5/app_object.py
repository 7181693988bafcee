# caught by: test_main_serves_on_the_port_that_it_is_given | says: from an import string
import importlib

import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    module, _, name = app.partition(":")
    application = getattr(importlib.import_module(module), name)()
    uvicorn.run(application, host="127.0.0.1", port=port, workers=workers)


if __name__ == "__main__":
    main(8000, 4)
