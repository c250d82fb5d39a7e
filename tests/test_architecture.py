"""The rules of the architecture: who may import whom, and how long things may get."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p for package in ("qa_train", "data_pipelines") for p in (ROOT / package).rglob("*.py"))

# module prefix -> prefixes it may not import
FORBIDDEN = {
    "qa_train.config": ["qa_train.", "data_pipelines", "torch", "transformers"],
    "qa_train.data": ["qa_train.model", "qa_train.train", "qa_train.eval", "qa_train.infer", "data_pipelines",
                      "deepspeed", "torch.cuda"],
    "qa_train.model": ["qa_train.data", "qa_train.train", "qa_train.eval", "qa_train.infer", "data_pipelines"],
    "qa_train.train": ["qa_train.eval", "qa_train.infer", "data_pipelines"],
    "qa_train.eval": ["qa_train.train", "data_pipelines"],
    "qa_train.infer": ["qa_train.train", "qa_train.eval", "data_pipelines"],
    "qa_train": ["data_pipelines"],
    "data_pipelines": ["qa_train.train", "qa_train.eval", "qa_train.infer", "qa_train.model"],
}  # fmt: skip

# outside library -> the files that may import it
OWNERS = {
    "wandb": {"qa_train/train/metrics.py"},
    "hydra": {"qa_train/config/compose.py", "qa_train/cli.py", "qa_train/commands/data.py"},
    "deepspeed": {"qa_train/train/distributed.py"},
}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    module, imports = _module(path), _imports(path)
    for prefix, banned in FORBIDDEN.items():
        if module == prefix or module.startswith(prefix + "."):
            wrong = [
                name for name in imports for ban in banned if name == ban or name.startswith(ban.rstrip(".") + ".")
            ]
            wrong = [name for name in wrong if not (prefix == "qa_train.config" and name.startswith(prefix))]
            assert not wrong, f"{module} imports {wrong}, which {prefix} may not"
    for library, files in OWNERS.items():
        if any(name.split(".")[0] == library for name in imports):
            assert str(path.relative_to(ROOT)) in files, f"only {files} may import {library}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 420, f"{path} has {text.count(chr(10))} lines: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{path}:{node.lineno} {node.name} has {length} lines: split it"


def test_no_unsafe_loading() -> None:
    for path in FILES:
        text = path.read_text()
        for word in ("pickle.load", "trust_remote_code=True", "weights_only=False", "shell=True"):
            assert word not in text, f"{path} uses {word}"
