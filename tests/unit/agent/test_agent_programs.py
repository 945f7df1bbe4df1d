"""What the agent may never do with what it reads, seen in its source."""

import ast
from pathlib import Path

import pytest

import atoll_agent

SOURCE = Path(atoll_agent.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
# What the network is read in, and what only works on that.
NETWORK = ("server", "handshake", "protocol", "identity", "keys", "enrolment")
SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "eval", "exec", "compile"}


def tree_of(name):
    return ast.parse((SOURCE / f"{name}.py").read_text())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_nothing_is_run_through_a_shell_or_as_python(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        of = node.func.value if isinstance(node.func, ast.Attribute) else None
        if not (isinstance(of, ast.Name) and of.id == "re"):
            assert name not in SHELLS, f"{path.name}:{node.lineno}"
        assert all(word.arg != "shell" for word in node.keywords), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("name", NETWORK)
def test_what_reads_the_network_starts_no_program(name):
    imported = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {node.module, *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith(("spawn", "posix_spawn", "execv", "fork")), node.attr
    assert not imported & {"subprocess", "multiprocessing", "pty", "runpy", "importlib"}


def test_a_requests_texts_are_the_runs_name_and_certificates_alone():
    """Whatever is added to the protocol has to be thought about here."""
    texts = {
        field.target.id
        for node in tree_of("protocol").body
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and "str" in ast.unparse(field.annotation)
    }
    assert texts == {"run", "certificate", "authorities"}
