"""Which checks `transformers serve` fails with the tiny Qwen, with and without continuous batching: `make audit-peers`.

This needs the extra `peers` and takes up to seven minutes.
"""

import asyncio
import os
import tempfile
from importlib.metadata import version

from rich.console import Console

from course.audit import audit, show
from course.audit.server import Server
from course.peers import BATCHING, SERVE, STARTS, write_float32


def main() -> int:
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = os.path.join(folder, "model")
        write_float32(checkpoint)
        for name in (BATCHING, SERVE):
            with STARTS[name](name, checkpoint, folder, False) as started:
                started.wait()
                server = Server(f"http://127.0.0.1:{started.port}", model=checkpoint)
                results = asyncio.run(audit(server))
            console.print(f"\n{name} ({version('transformers')}): {show.summary(results)}")
            for result in results:
                if result.status != "passed":
                    for line in show.lines(result):
                        console.print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
