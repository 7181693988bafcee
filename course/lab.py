"""JupyterLab on the first notebook, with a kernel that is this very interpreter.

python -m course.lab [--install-kernel] [any option of jupyter lab]
"""

import os
import sys
import tempfile
from pathlib import Path

from course.manifest import ROOT
from course.words import language, words

FIRST_NOTEBOOKS = {"en": "notebooks/00_start_here.ipynb", "zh": "notebooks/zh/00_start_here.ipynb"}
SETTINGS = ROOT / "course" / "jupyterlab"
KERNEL = "serving-qwen"
KERNEL_TITLE = "Serving Qwen"
KERNEL_OPTIONS = [
    # else the terminal is warned of plain TCP, which stays on this computer
    "--log-level=ERROR",
    # loaded as the kernel starts: exercise cells are kept from the first one on, also after a restart
    *("--ext", "course.notebook"),
]


def install_kernel() -> None:
    """Write the kernel spec into the environment that runs this, out of reach of any other."""
    from ipykernel.kernelspec import write_kernel_spec
    from jupyter_client.kernelspec import KernelSpecManager

    with tempfile.TemporaryDirectory() as folder:
        spec = write_kernel_spec(
            Path(folder) / KERNEL,
            overrides={"display_name": KERNEL_TITLE, "env": {"OMP_NUM_THREADS": "1"}},
            extra_arguments=KERNEL_OPTIONS,
            # the debugger warns about frozen modules
            python_arguments=["-Xfrozen_modules=off"],
        )
        KernelSpecManager().install_kernel_spec(spec, KERNEL, prefix=sys.prefix)


def kernel_python() -> str | None:
    """The interpreter that the course's kernel would start, or None if there is no such kernel."""
    command = _kernel_command()
    return command[0] if command else None


def _kernel_command() -> list[str]:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    try:
        return KernelSpecManager().get_kernel_spec(KERNEL).argv
    except NoSuchKernel:
        return []


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
    """The arguments for JupyterLab; an option in `extra` takes the place of the course's own."""
    first = FIRST_NOTEBOOKS[language()]
    page = f"/lab/tree/{first}" if (ROOT / first).exists() else "/lab"
    options = {
        "--ip": "127.0.0.1",
        "--log-level": "ERROR",
        "--ServerApp.root_dir": ROOT,
        "--LabApp.default_url": page,
        # no pop-up that asks for a subscription before the first cell
        "--LabApp.app_settings_dir": SETTINGS,
        "--LabApp.custom_css": True,
    }
    # JupyterLab refuses an option that is given twice
    given = {argument.partition("=")[0] for argument in extra}
    arguments = [f"{name}={value}" for name, value in options.items() if name not in given]
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
    if not is_this_interpreter(kernel_python()) or not set(KERNEL_OPTIONS) <= set(_kernel_command()):
        install_kernel()

    # the grader, which holds hundreds of MB ready, ends with it
    os.environ["COURSE_LAB"] = str(os.getpid())
    print(words("Opening JupyterLab. To stop it, press Ctrl-C twice in this window."), flush=True)
    _lab_app().launch_instance(lab_arguments(arguments))


def _lab_app():
    from jupyterlab.labapp import LabApp

    class CourseLab(LabApp):
        """JupyterLab with the course's own style sheet, for which there is no option."""

        @classmethod
        def get_extension_package(cls):
            return LabApp.get_extension_package()

        @classmethod
        def make_serverapp(cls, **options):
            return super().make_serverapp(static_custom_path=[str(SETTINGS / "custom")], **options)

    return CourseLab


if __name__ == "__main__":
    main()
