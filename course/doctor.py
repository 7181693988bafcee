"""What could keep the course from running on this computer, and the one line that fixes it.

Every check is a function that returns a Finding. None of them changes a file of yours; a model that
COURSE_MODEL names is downloaded if it is not on this computer yet.

Not covered: whether a GPU works, and anything that only shows under load.
"""

import http.server
import importlib.metadata
import json
import os
import shutil
import sys
import threading
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, url2pathname

from course import lab
from course.manifest import ROOT, work_folder
from course.words import words

DISTRIBUTION = "serving-qwen"
# a check keeps a copy of every version that was checked; a server's log may be long
DISK_NEEDED = 500_000_000
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
)


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. With ok=True, `mend` is only advice."""

    ok: bool
    what: str
    mend: str = ""


def diagnose() -> list[Finding]:
    """Check everything, the quick things first. It takes a few seconds because it loads the model."""
    looks = (_environment, _kernel, _versions, _loopback, _disk, _threads, _browser, _fork_server, _model)
    return [_outliving(look) for look in looks]


def show(findings, console=None) -> bool:
    """Print the findings, readable without colour. True if there is nothing to fix."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    problems = 0
    for finding in findings:
        problems += not finding.ok
        mark = Text(f"  {words('ok'):<5}", "green") if finding.ok else Text(f"  {words('FIX'):<5}", "bold red")
        console.print(mark + Text(finding.what), soft_wrap=True)
        if finding.mend:
            lead = words("optional: {mend}" if finding.ok else "run: {mend}", mend=finding.mend)
            console.print(Text(" " * 7 + lead, "" if finding.ok else "bold"), soft_wrap=True)
    if problems:
        console.print(
            "\n" + words("Problems found: {problems}. Once that is fixed, run course doctor again.", problems=problems)
        )
    else:
        console.print("\n" + words("All is well."))
    return not problems


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome. CHROMIUM=/path/to/it overrides."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


def pins(constraints: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """The pinned version of each package that constraints.txt has for this Python and system."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (line.split("#")[0].strip() for line in constraints.read_text("utf-8").splitlines())
    wanted = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(each.name): next(iter(each.specifier)).version
        for each in wanted
        if each.marker is None or each.marker.evaluate()
    }


def wrong_versions() -> list[str]:
    """What is installed in another version than the pinned one. What is not installed is no error
    unless the course needs it: pins also hold for other systems and extras."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    wrong = []
    for name, pinned in pins().items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in needed:
                wrong.append(words("{package} is missing", package=name))
            continue
        # a build's own label is not a version: 2.13.0+cpu is 2.13.0
        if Version(found).public != Version(pinned).public:
            wrong.append(words("{package} is {found}, not {pinned}", package=name, found=found, pinned=pinned))
    return wrong


def _outliving(look) -> Finding:
    try:
        return look()
    except Exception as error:
        name = look.__name__.strip("_").replace("_", " ")
        said = f"{type(error).__name__}: {_first_line(error)}"
        what = words("{look}: {said}; the cause is unknown. This may help:", look=name, said=said)
        return Finding(False, what, _set_up())


def _environment() -> Finding:
    python = f"Python {sys.version.split()[0]} ({sys.executable})"
    installed = _installed_from()
    if installed == ROOT:
        return Finding(True, words("this is the course's own environment: {python}", python=python))
    if installed is None:
        what = words("the course is not installed in this environment: {python}", python=python)
    else:
        what = words(
            "this environment belongs to another copy of the course, {folder}: {python}",
            folder=installed,
            python=python,
        )
    ready = (ROOT / ".venv" / ".installed").exists() and Path(sys.prefix) != ROOT / ".venv"
    return Finding(False, what, f'source "{ROOT}/.venv/bin/activate"' if ready else _set_up())


def _installed_from() -> Path | None:
    """The folder that this environment's course was installed from."""
    # a build leaves a second record beside pyproject.toml, which does not say where it came from
    for record in importlib.metadata.distributions(name=DISTRIBUTION):
        try:
            url = urlsplit(json.loads(record.read_text("direct_url.json"))["url"])
        except (TypeError, KeyError, ValueError):
            continue
        return Path(url2pathname(url.path)).resolve()
    return None


def _kernel() -> Finding:
    python = lab.kernel_python()
    if lab.is_this_interpreter(python):
        return Finding(True, words("notebooks have a kernel for this environment: {kernel}", kernel=lab.KERNEL_TITLE))
    if python:
        what = words("the kernel {kernel} runs a different Python: {python}", kernel=lab.KERNEL_TITLE, python=python)
    else:
        what = words("the kernel {kernel} is missing", kernel=lab.KERNEL_TITLE)
    return Finding(False, what, f"{sys.executable} -m course.lab --install-kernel")


def _versions() -> Finding:
    wrong = wrong_versions()
    if not wrong:
        return Finding(True, words("all packages have the versions that the course was tested with"))
    what = "; ".join(wrong[:3])
    if len(wrong) > 3:
        what = words("{what} and {many} more", what=what, many=len(wrong) - 3)
    return Finding(False, what, _set_up())


def _loopback() -> Finding:
    """A proxy set for the whole computer often swallows requests to the computer itself."""
    import httpx

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        try:
            answer = httpx.get(url, timeout=10).text
        except httpx.HTTPError as error:
            answer = f"{type(error).__name__}: {_first_line(error)}"
        finally:
            server.shutdown()
    if answer == "hello":
        return Finding(True, words("a server on 127.0.0.1 can be reached"))
    proxies = getproxies()
    if proxies:
        listed = ", ".join(proxies.values())
        what = words("requests to 127.0.0.1 go through a proxy and do not arrive ({proxies})", proxies=listed)
        return Finding(False, what, _export("NO_PROXY", "127.0.0.1,localhost"))
    what = words("a server on 127.0.0.1 cannot be reached ({why})", why=answer[:80])
    return Finding(False, what, "sudo ip link set lo up" if sys.platform == "linux" else _set_up())


def _disk() -> Finding:
    work = work_folder()
    place = next(each for each in (work, *work.parents) if each.exists())
    if not os.access(place, os.W_OK):
        what = words("{folder} is not writable", folder=place)
        return Finding(False, what, f'sudo chown -R "$USER" "{place}"')
    free = shutil.disk_usage(place).free
    what = words("{free} GB free for your answers in {folder}", free=f"{free / 1e9:.1f}", folder=place)
    if free < DISK_NEEDED:
        return Finding(False, what, f"{sys.executable} -m pip cache purge")
    return Finding(True, what)


def _threads() -> Finding:
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads == "1":
        return Finding(True, words("torch uses one thread"))
    what = words("OMP_NUM_THREADS is {threads}; the tiny model is slower with more than one thread", threads=threads)
    return Finding(False, what, _export("OMP_NUM_THREADS", "1"))


def _fork_server() -> Finding:
    if not hasattr(os, "fork"):
        return Finding(True, words("checks work, but each one has to load torch: this system cannot fork"))
    from course.grading import forkserver

    try:
        forkserver.connect().close()
    except forkserver.NoForkServer as error:
        return Finding(False, _first_line(error), _set_up())
    return Finding(True, words("checks start quickly, from a process that has torch loaded"))


def _browser() -> Finding:
    chromium = find_chromium()
    if chromium:
        return Finding(True, words("the browser tests use {browser}", browser=chromium))
    install = "sudo apt-get install chromium" if sys.platform == "linux" else words("install Google Chrome")
    return Finding(True, words("there is no Chromium, so the browser tests are skipped"), install)


def _model() -> Finding:
    from course.qwen.models import ModelUnavailable, model_path

    chosen = os.environ.get("COURSE_MODEL")
    name = chosen or words("the tiny Qwen")
    mend = _unset("COURSE_MODEL") if chosen else "git checkout -- course/qwen/tiny"
    try:
        path = model_path()
        answer = _answer(path, "你好")
    except ModelUnavailable as error:
        wrong = str(error).split("\n" + words("What you can do:"))[0]
        return Finding(False, " ".join(wrong.split()), mend)
    except Exception as error:
        what = words("{name} does not load: {why}", name=name, why=f"{type(error).__name__}: {_first_line(error)}")
        return Finding(False, what, mend)
    if not answer:
        return Finding(False, words("{name} loads, but gives no answer to 你好", name=name), mend)
    return Finding(True, words("{name} answers 你好 with {answer}", name=name, answer=answer))


def _answer(path: str, text: str) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    chat = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    new = tokens[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _set_up() -> str:
    in_venv = Path(sys.prefix) == ROOT / ".venv" or not os.environ.get("CONDA_PREFIX")
    if in_venv and os.name == "posix":
        return f'make -C "{ROOT}" setup'
    return f'cd "{ROOT}" && python -m pip install -c constraints.txt -e .'


def _export(name: str, value: str) -> str:
    return f"set {name}={value}" if os.name == "nt" else f"export {name}={value}"


def _unset(name: str) -> str:
    return f"set {name}=" if os.name == "nt" else f"unset {name}"
