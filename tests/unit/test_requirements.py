"""The pins work together: pip resolves what does not import, so every package is imported here."""

import importlib
import re
from importlib.metadata import packages_distributions

import pytest

from helpers.data import ROOT

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


def test_a_dataset_goes_to_arrow_and_back():
    from datasets import Dataset

    dataset = Dataset.from_list([{"ids": [1, 2], "text": "a"}])
    assert dataset.to_pandas().iloc[0]["text"] == "a" and dataset.with_format("numpy")[0]["ids"].sum() == 3
