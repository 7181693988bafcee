"""Calls the answer's `main` with other arguments than its script does."""

import importlib
import sys

if __name__ == "__main__":
    folder, name, port, workers, app = sys.argv[1:]
    sys.path.insert(0, folder)
    sys.argv[1:] = []  # not the answer's own
    importlib.import_module(name).main(int(port), int(workers), app)
