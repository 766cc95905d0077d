"""Rules that hold for the whole of the source."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("feature_repo", "training", "monitoring", "serving", "flows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"evidently", "feast", "lightgbm", "mlflow", "numba", "optuna", "pandas", "prefect", "sklearn", "torch"}
PICKLING = {"cloudpickle", "cPickle", "dill", "joblib", "marshal", "pickle", "shelve"}
PICKLING_CALLS = {"read_pickle", "to_pickle"}

# Imports each module in turn, and names what it changed in the process and around it.
IMPORT_ALL = """
import importlib, json, logging, os, sys, threading

def state():
    yield from (f"variable {name}={value!r}" for name, value in os.environ.items())
    yield from (f"file {name}" for name in os.listdir("."))
    yield from (f"log handler {handler}" for handler in logging.getLogger().handlers)
    yield from (f"thread {thread.name}" for thread in threading.enumerate())

for name in json.loads(sys.argv[1]):
    before = set(state())
    importlib.import_module(name)
    for change in sorted(before ^ set(state())):
        print(name, change)
print("imported all")
"""


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def _pickling(source: str) -> set[str]:
    """Names of what pickles or unpickles in a source text."""
    tree = ast.parse(source)
    found = PICKLING.intersection(_imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in PICKLING_CALLS:
            found.add(node.attr)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            allows = any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords)
            if called in ("torch.load", "torch.save") or allows:
                found.add(called)
    return found


def test_nothing_pickles() -> None:
    """But for what a worker and its own parent say to each other over their pipe, which nobody else can write to."""
    found = {_module(path): pickling for path in SOURCES if (pickling := _pickling(path.read_text()))}
    assert found == {"training.worker": {"pickle"}}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import dump",
        "frame.to_pickle(p)",
        "torch.load(p)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_pickling_would_be_found(source: str) -> None:
    assert _pickling(source)


def test_no_pickling_is_not_found_where_there_is_none() -> None:
    assert not _pickling("import torch\nnp.load(p, allow_pickle=False)\nsafetensors.torch.load_file(p)")


def test_the_command_line_starts_without_heavy_imports(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom typer.testing import CliRunner\nimport flows.cli\n"
        "result = CliRunner().invoke(flows.cli.app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "typer" in loaded
    assert HEAVY.intersection(loaded) == set()


def test_top_level_packages_hold_a_docstring_and_nothing_else() -> None:
    for package in PACKAGES:
        body = ast.parse((ROOT / package / "__init__.py").read_text()).body
        assert len(body) == 1, package
        assert isinstance(body[0], ast.Expr), package


def test_importing_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """But for modules that only others import: flows Prefect, definitions Feast, the preload what forks workers."""
    theirs = (
        "feature_repo.definitions",
        "feature_repo.feast_objects",
        "feature_repo.store.offline",
        "feature_repo.store.online",
        "flows.cycle_flow",
        "flows.evaluate_flow",
        "flows.nightly_flow",
        "flows.snapshot_flow",
        "training.preload",
    )
    names = [name for name in map(_module, SOURCES) if not name.startswith(theirs)]
    sklearns = {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"}  # set when it is imported
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps(names)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, **sklearns, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["imported all"]
