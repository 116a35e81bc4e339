"""Rules for all files of the package and of the jobs, where a tool can check them."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for room in ("volgrowth", "jobs") for path in (ROOT / room).rglob("*.py"))
WRITTEN = [*sorted(ROOT.glob("*.md")), *MODULES, *sorted((ROOT / "docs").rglob("*.md"))]

LONGEST_FILE, LONGEST_FUNCTION = 400, 50
MOST_NAMES_TWICE = 1  # `main`

# folders of one machine, or of one person's account on it; `/home/ray` is the account in Ray's images
OF_A_MACHINE = re.compile(r"(?<![\w.~$}*-])/(?:work|tmp|root|Users|home/(?!ray\b)\w+)/")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_no_page_or_module_names_a_folder_of_one_machine(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [(number, line) for number, line in lines if OF_A_MACHINE.search(line)] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    """Docstrings do not count among a function's lines."""
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    long = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or 0) - node.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)
            if lines > LONGEST_FUNCTION:
                long[node.name] = lines
    assert long == {}


def test_few_public_names_are_defined_in_more_than_one_file() -> None:
    """A name means one thing, and says in which room it is at home."""
    defined = {
        (node.name, path)
        for path in MODULES
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    files = Counter(name for name, _ in defined)
    twice = sorted(name for name, count in files.items() if count > 1)
    assert len(twice) <= MOST_NAMES_TWICE, twice
