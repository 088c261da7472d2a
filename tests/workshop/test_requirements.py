"""The pins work together: pip resolves what does not import, so every package is imported here."""

import ast
import importlib
import re
import subprocess
import sys
from importlib.metadata import distributions, packages_distributions

import pytest
from packaging.specifiers import SpecifierSet

from helpers.machine.paths import ROOT

MODULES = {
    name.lower().replace("_", "-"): module
    for module, names in packages_distributions().items()
    for name in names
    if not module.startswith("_")
}
PINNED = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("package", sorted(set(PINNED) - {"lamini"}))
def test_every_pinned_package_imports(package):
    if package == "jupyterlab":
        importlib.import_module("jupyterlab.labapp")
    else:
        importlib.import_module(MODULES[package.lower().replace("_", "-")])


def test_every_pin_can_be_installed_on_the_oldest_and_the_newest_python():
    """As far as they are installed here: what each says about Python."""
    files = [*ROOT.glob("*.txt"), *ROOT.glob("tests/**/requirements.txt")]
    lines = "".join(path.read_text(encoding="utf-8") for path in files)
    pins = {
        (name.lower().replace("_", "-"), version) for name, version in re.findall(r"^([\w.-]+)==(\S+)", lines, re.MULTILINE)
    }
    found = [d for d in distributions() if (d.name.lower().replace("_", "-"), d.version.split("+")[0]) in pins]
    assert len(found) > 150
    told = {f"{d.name} {d.version}": SpecifierSet(d.metadata.get("Requires-Python") or "") for d in found}
    assert not {name: str(spec) for name, spec in told.items() if not all(v in spec for v in ("3.11.0", "3.12.1", "3.13.0"))}


def test_an_older_python_is_refused_in_one_line_before_anything_is_imported():
    """The code runs here as if this Python was an older one; no newer syntax may stand before the check."""
    source = (ROOT / "helpers" / "__init__.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    code = "import sys; sys.version_info = (3, 8, 18); import runpy; runpy.run_module('helpers', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "needs Python 3.11 or newer, and this is 3.8.18" in done.stderr and "PYTHON=python3.11" in done.stderr
    first = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith(("#", "-c")))
    assert "Install-Python-3.11-or-newer" in first and first.endswith('python_version < "3.11"')


def test_a_dataset_goes_to_arrow_and_back():
    from datasets import Dataset

    dataset = Dataset.from_list([{"ids": [1, 2], "text": "a"}])
    assert dataset.to_pandas().iloc[0]["text"] == "a" and dataset.with_format("numpy")[0]["ids"].sum() == 3
