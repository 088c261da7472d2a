"""The house: a core that a class reads, what lies below it, and wings beside it. Its rules, held by the sources themselves."""

import ast
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter

import pytest

import helpers
from helpers.machine.paths import ROOT

PACKAGE = ROOT / "helpers"
CORE = ("data", "tokenization", "models", "attention", "lora", "training", "generation", "evaluation", "lesson", "recipe")
BELOW = ("machine", "text")
WINGS = ("own_data", "retrieval", "measures", "hardware", "serving", "workshop")
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def imported(name: str) -> set[str]:
    """Modules of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers"):
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & SOURCES.keys()
            found |= whole or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("helpers.")}
    return found - {"helpers"}


def room(name: str) -> str:
    """The first part of a module's name below `helpers`."""
    return name.split(".")[1] if "." in name else ""


def test_a_class_reads_at_most_1500_lines():
    lines = {name: len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in CORE}
    assert sum(lines.values()) <= 1500, lines


def test_every_module_has_its_place():
    assert {room(name) for name in SOURCES} == {"", "__main__", *CORE, *BELOW, *WINGS}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_nothing_imports_upward(name):
    allowed = {**dict.fromkeys(BELOW, BELOW), **dict.fromkeys(CORE, BELOW + CORE)}
    wrong = [other for other in imported(name) if room(name) in allowed and room(other) not in allowed[room(name)]]
    assert not wrong


def test_no_circle_not_even_through_an_import_inside_a_function():
    order = list(TopologicalSorter({name: imported(name) for name in SOURCES}).static_order())  # raises CycleError
    assert len(order) >= len(SOURCES)


def test_the_reading_order_is_one_and_reads_only_what_was_read():
    order = helpers.__doc__.split("in this order:")[1].strip().split("\n\n")[0].replace("→", " ").split()
    assert sorted(order) == sorted(CORE)
    for place, name in enumerate(order):
        later = {f"helpers.{other}" for other in order[place:]}
        assert not imported(f"helpers.{name}") & later, name
    assert " → ".join(order) in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_each_public_name_is_defined_once():
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and name != "helpers.__main__"
            ):
                places[node.name].append(name)
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_what_is_imported_at_once_is_light():
    code = "import sys, helpers; print(sorted({'torch', 'pandas', 'numpy', 'matplotlib'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"
    code = code.replace("import sys, helpers", "import sys, helpers.machine.paths")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"
