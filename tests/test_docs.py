"""The pages name what is there: docs/equations.md its functions and tests, links their targets."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EQUATIONS = ROOT / "docs" / "equations.md"
NAMED = re.compile(r"\[`([^`]+)`\]\(([^)]+\.py)\)")  # [`forward.q_step`](../src/…/forward.py)


@functools.cache
def defined(path: Path) -> set[str]:
    """The functions and classes of a file, and `Class.name` for their methods and attributes."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            for part in ast.walk(node):
                if isinstance(part, ast.FunctionDef):
                    names.add(f"{node.name}.{part.name}")
                elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    names.add(f"{node.name}.{part.target.id}")
                elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                    names.add(f"{node.name}.{part.attr}")
    return names


def missing(text: str, page: Path = EQUATIONS) -> list[str]:
    """What a text names that is not there: `module.function` and `test_module::test_name`."""
    lost = []
    for name, target in NAMED.findall(text):
        path = (page.parent / target).resolve()
        is_test = path.is_relative_to(ROOT / "tests")
        module, _, rest = name.partition("::" if is_test else ".")
        if not path.is_file() or module != path.stem or rest not in defined(path):
            lost.append(f"{name} in {target}")
    return lost


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


def test_every_function_and_test_that_the_equations_name_is_there() -> None:
    text = EQUATIONS.read_text()
    assert len(NAMED.findall(text)) > 100
    assert missing(text) == []


def test_every_equation_has_its_function_and_its_proof() -> None:
    lines = EQUATIONS.read_text().splitlines()
    rows = [line for line in lines if line.count("|") == 6 and ".py)" in line]
    assert len(rows) > 40
    for row in rows:
        _, _, _, here, proof, _, _ = row.split("|")
        assert "(../src/inkdrop/" in here, row
        assert "(../tests/" in proof, row


@pytest.mark.parametrize(
    "link",
    [
        "[`forward.q_stop`](../src/inkdrop/diffusion/forward.py)",
        "[`backward.q_step`](../src/inkdrop/diffusion/forward.py)",
        "[`forward.q_step`](../src/inkdrop/forward.py)",
        "[`schedule.NoiseSchedule.gammas`](../src/inkdrop/diffusion/schedule.py)",
        "[`test_forward::test_nothing`](../tests/diffusion/test_forward.py)",
    ],
)
def test_a_name_that_is_not_there_is_found(link: str) -> None:
    assert len(missing(link)) == 1


def test_every_local_link_leads_somewhere() -> None:
    lost = []
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            if not file.exists() or (anchor and anchor not in headings(file)):
                lost.append(f"{page.relative_to(ROOT)} links to {target}")
    assert lost == []
