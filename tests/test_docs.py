"""The pages name what is there: docs/equations.md its functions and tests, links their targets."""

import ast
import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import yaml

from inkdrop.config import Config
from inkdrop.settings import Settings

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


def blocks(language: str) -> list[str]:
    """The pages' blocks of code in a language."""
    fenced = rf"^```{language}\n(.*?)^```$"
    found = [re.findall(fenced, page.read_text(), re.MULTILINE | re.DOTALL) for page in PAGES]
    return [block for page in found for block in page]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_every_shell_script_can_be_read() -> None:
    assert any("#SBATCH" in block for block in blocks("bash"))
    for script in blocks("bash"):
        read = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert read.returncode == 0, read.stderr


def test_every_yaml_document_can_be_read() -> None:
    documents = [document for block in blocks("yaml") for document in yaml.safe_load_all(block)]
    assert {"Job", "Service"} <= {document["kind"] for document in documents}


def option_names(settings: type[Settings], prefix: str = "") -> set[str]:
    """The options that a configuration makes."""
    names = set()
    for name, field in settings.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)]
        option = prefix + name.replace("_", "-")
        names |= {option}.union(*(option_names(kind, f"{option}.") for kind in inner))
    return names


def test_every_option_of_the_configuration_that_the_pages_name_is_there() -> None:
    known = option_names(Config)
    assert {"training.parallel", "network.patch-size", "network.width"} <= known
    groups = "data|schedule|network|weighting|training|logging"
    for page in PAGES:
        named = re.findall(rf"--((?:{groups})\.[a-z][\w-]*)", page.read_text())
        assert set(named) <= known, page.name
