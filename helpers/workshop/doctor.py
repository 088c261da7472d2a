"""Doctor: whether this machine has all the course needs, a line each, with what to do where it has not."""

import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

from helpers.machine.paths import ROOT, cache_folder


class Findings:
    """Lines about this machine, printed as they come, and the number of those with a problem."""

    def __init__(self) -> None:
        self.problems = 0

    def line(self, name: str, value: object, problem: str = "") -> None:
        """Print one; problem: what is wrong and what to do."""
        print(f"{'!!' if problem else 'ok'}  {name:<16} {value}" + (f"  ->  {problem}" if problem else ""))
        if problem:
            self.problems += 1


def doctor() -> int:
    """Report versions, device, memory and the models that come as packages; 1 when something is missing."""
    found = Findings()
    found.line("python", platform.python_version())
    check_packages(found)
    if found.problems:
        print("\nSome packages are missing or differ. All at once: make install, or pip install -r requirements.txt")
        return 1
    check_machine(found)
    check_models(found)
    print("\nAll is ready." if not found.problems else f"\n{found.problems} thing(s) to mend; see the lines that start with !!")
    return 1 if found.problems else 0


def check_packages(found: Findings) -> None:
    """Compare what is installed with requirements.txt, as far as it is for this Python."""
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    marked = r'^([\w-]+)==([\w.]+)(?: ; python_version ([<>]=?) "3\.(\d+)")?'
    for package, wanted, sign, minor in re.findall(marked, requirements, re.MULTILINE):
        if sign and (sys.version_info[1] < int(minor)) != (sign == "<"):
            continue
        try:
            installed = version(package)
            problem = "" if installed.split("+")[0] == wanted else f"Run: pip install {package}=={wanted}"
        except PackageNotFoundError:
            installed, problem = "missing", f"Run: pip install {package}=={wanted}"
        found.line(package, installed, problem)


def check_machine(found: Findings) -> None:
    """Name the device, and what is free of memory and disk."""
    import psutil  # here, as it and torch may be among the packages that are missing
    import torch

    from helpers.machine.device import this_machine

    machine = this_machine()
    name = machine["gpu"] or f"{machine['cpu']}, {torch.get_num_threads()} threads"
    found.line("device", f"{name}, computes in {machine['computes_in']}")
    memory = psutil.virtual_memory().available / 2**30
    found.line("free memory", f"{memory:.1f} GiB", "" if memory >= 6 else "Close other programs: a finetune needs 6 GiB.")
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_folder()).free / 2**30
        found.line("free disk", f"{free:.1f} GiB", "" if free >= 3 else f"Make room: 3 GiB are needed in {cache_folder()}.")
    except OSError as error:
        found.line("free disk", "no folder for models", str(error))


def check_models(found: Findings) -> None:
    """Find the models that come as packages, and convert them where that was not done; some are optional."""
    from helpers.machine.loading import ModelError  # here, as they import torch
    from helpers.machine.packaged import PACKAGED, converted, installed
    from helpers.retrieval.search import find_encoder

    for model in PACKAGED.values():
        if model.hub and not installed(model):
            found.line(f"{model.name} model", f"not installed; optional: make larger, or {model.install}")
            continue
        try:
            found.line(f"{model.name} model", converted(model))
        except (ModelError, OSError) as error:
            found.line(f"{model.name} model", "not ready", str(error))
    try:
        found.line("embedding model", find_encoder())
    except ModelError as error:
        found.line("embedding model", "not ready", str(error))
