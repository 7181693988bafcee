"""JupyterLab on the first notebook, with a kernel that is this very interpreter.

    python -m course.lab [--install-kernel] [any option of jupyter lab]
"""

import os
import sys
from pathlib import Path

from course.manifest import ROOT

FIRST_NOTEBOOK = "notebooks/00_start_here.ipynb"
KERNEL = "serving-qwen"
KERNEL_TITLE = "Serving Qwen"


def install_kernel() -> None:
    """Write the kernel spec into the environment that runs this, out of reach of any other."""
    from ipykernel.kernelspec import install

    install(
        kernel_name=KERNEL,
        display_name=KERNEL_TITLE,
        prefix=sys.prefix,
        env={"OMP_NUM_THREADS": "1"},
    )


def kernel_python() -> str | None:
    """The interpreter that the course's kernel would start, or None if there is no such kernel."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    try:
        return KernelSpecManager().get_kernel_spec(KERNEL).argv[0]
    except NoSuchKernel:
        return None


def is_this_interpreter(python: str | None) -> bool:
    """Whether `python` is the running one, by this or another of its names (python, python3)."""
    if python is None:
        return False
    # the folders are compared as they are: two virtual environments link to the same file
    folders = [os.path.normcase(os.path.dirname(each)) for each in (python, sys.executable)]
    return folders[0] == folders[1] and os.path.realpath(python) == os.path.realpath(sys.executable)


def can_show_a_browser() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    in_container = any(Path(p).exists() for p in ("/.dockerenv", "/run/.containerenv"))
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(display) and not in_container


def lab_arguments(extra: list[str]) -> list[str]:
    """The arguments for JupyterLab; what is in `extra` comes last and so wins."""
    page = f"/lab/tree/{FIRST_NOTEBOOK}" if (ROOT / FIRST_NOTEBOOK).exists() else "/lab"
    arguments = [
        "--ip=127.0.0.1",
        f"--ServerApp.root_dir={ROOT}",
        f"--LabApp.default_url={page}",
        "--log-level=WARN",
        # no pop-up that asks for a subscription before the first cell
        f"--LabApp.app_settings_dir={ROOT / 'course' / 'jupyterlab'}",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")
    if not can_show_a_browser():
        arguments.append("--no-browser")
    return arguments + extra


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    if "--install-kernel" in arguments:
        install_kernel()
        return
    if not is_this_interpreter(kernel_python()):
        install_kernel()

    from jupyterlab.labapp import LabApp

    print("Opening JupyterLab. To end it, press Ctrl-C twice in this window.", flush=True)
    LabApp.launch_instance(lab_arguments(arguments))


if __name__ == "__main__":
    main()
