"""The rules of the architecture: who may import whom, no circles, and how long functions may get.

Imports inside functions count like those at the top of a file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from qa_train.command_line.command_table import COMMANDS
from qa_train.config import STAGES

ROOT = Path(__file__).parent.parent
FILES = sorted(p for package in ("qa_train", "data_pipelines") for p in (ROOT / package).rglob("*.py"))

_READS = "config data.audio data.shards data.stores data.text"
_TRAIN = "train.job train.numbers train.optimizer train.safety"
# room -> the rooms that it may import, all of which stand above it in this table; its own files, and utils, go without
# saying. A room is a package; "data", "model", "train" and so on are the files that lie loose in those packages, "cli"
# those in qa_train itself.
MAY_IMPORT = {
    name: set(rooms.split())
    for name, rooms in {
        "utils": "",
        "jobs": "",
        "config.settings": "",
        "config.checks": "config.settings",
        "config": "config.settings config.checks",
        "llm": "",
        "data.audio.structure": "",
        "data.audio": "config data.audio.structure",
        "data.stores": "config",
        "data.order": "data.stores",
        "data.text": "config",
        "data.shards": "config data.audio data.audio.structure data.order data.stores data.text",
        "data": f"{_READS} data.order",
        "data.tools": f"{_READS} jobs",
        "model.layers": "data.audio",
        "model.stored": "model.layers",
        "model.encoders": "config model.layers model.stored",
        "model": "config data.audio model.encoders model.layers model.stored",
        "planner": "config data data.audio data.order model model.layers",
        "infer": "config data.audio data.text model",
        "report": "config data.audio",
        "dashboard": "config report",
        "train.job": "config model model.stored",
        "train.safety": "config train.job",
        "train.numbers": "config data.audio model planner train.job",
        "train.optimizer": "config model.layers",
        "train": f"config data data.audio data.order model model.layers model.stored planner {_TRAIN}",
        "export": "cli config data.audio model model.stored report train.job",
        "doctor": "config data.shards model model.stored report train.job",
        "eval.scores": "",
        "eval.benchmarks": "config data.audio data.text llm eval.scores",
        "eval": "config data.audio data.shards data.text data model model.stored infer report llm eval.scores "
        "eval.benchmarks",
        "preferences": "config data data.shards data.text infer llm eval eval.scores",
        "callbacks": "config data.audio data.shards data.text infer train train.job train.safety eval eval.scores",
        "commands": "config jobs data.shards data.stores data data.tools model planner infer report dashboard doctor "
        "eval preferences export callbacks train train.job train.safety",
        "command_line": "cli commands config",
        "cli": "command_line commands",
        "data_pipelines.clips": "data.audio data.shards data.stores jobs",
        "data_pipelines.synthetic": "data.audio data_pipelines.clips",
        "data_pipelines.corpora": "config data.audio data.audio.structure data.shards data.stores data.text",
        "data_pipelines.corpora.formats": "data.shards data.stores data.text data.tools data_pipelines.corpora",
        "data_pipelines.corpora.sounds": "data_pipelines.corpora",
        "data_pipelines.corpora.spoken": "data.text data_pipelines.corpora",
        "data_pipelines.importing": "config data.audio data.shards data.stores data.text jobs data_pipelines.clips "
        "data_pipelines.corpora data_pipelines.corpora.formats data_pipelines.corpora.sounds "
        "data_pipelines.corpora.spoken",
        "data_pipelines.labelling": f"{_READS} data data.tools jobs model infer llm eval eval.scores "
        "data_pipelines.importing",
        "data_pipelines": f"{_READS} jobs llm data.tools data_pipelines.clips data_pipelines.corpora "
        "data_pipelines.importing data_pipelines.synthetic",
    }.items()
}
# package -> outside libraries that it may not import
BANNED = {
    "config": {"torch", "transformers"},
    "utils": {"torch", "transformers"},
    "llm": {"torch", "transformers"},
    "report": {"torch", "transformers"},
    "dashboard": {"torch", "transformers"},
    "data": {"deepspeed", "torch.cuda"},
}
# outside library -> the files that may import it
OWNERS = {
    "wandb": {"qa_train/train/numbers/sinks.py"},
    "hydra": {"qa_train/config/compose.py", "qa_train/commands/train_stage.py"},
    "av": {"qa_train/data/audio/media.py"},
    "deepspeed": {"qa_train/train/job/distributed.py"},
    "upath": {"qa_train/data/stores/folders.py"},
    "ray": {"qa_train/jobs/ray_pool.py"},
    "pycurl": {"qa_train/data/stores/http_client.py"},
    "tenacity": {"qa_train/utils/retry.py"},
    "webdataset": {"qa_train/data/shards/wds.py"},
    # One search for the nearest name.
    "difflib": {"qa_train/utils/closest.py"},
}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


def _names(path: Path) -> set[tuple[str, str]]:
    """(module, name) of ``from module import name``, and (module, "") of ``import module``."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: import by the full name"
            found |= {(node.module, alias.name) for alias in node.names}
    return found


@cache
def _graph() -> dict[str, set[str]]:
    """Every module with the modules of ours that it imports."""
    graph = {}
    for module, path in MODULES.items():
        whole = {f"{source}.{name}" if f"{source}.{name}" in MODULES else source for source, name in _names(path)}
        graph[module] = (whole & set(MODULES)) - {module}
    # The imports by name: a command, a stage by the command that trains, and the check of a stage's own section.
    graph["qa_train.command_line.command_table"] |= {
        f"qa_train.commands.{command.function.partition(':')[0]}"
        for command in COMMANDS.values()
        if command.function and not command.function.startswith(".")
    }
    graph["qa_train.commands.train_stage"] |= {kind.run.partition(":")[0] for kind in STAGES.values()}
    graph["qa_train.config.checks.stage_checks"] |= {
        kind.check.partition(":")[0] for kind in STAGES.values() if kind.check is not None
    }
    return graph


def _statements(body: list[ast.stmt], *, typing: bool) -> Iterator[ast.stmt]:
    """What runs when a module is imported, or (``typing``) what only type checkers read."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "not TYPE_CHECKING"):
            if typing == (ast.unparse(node.test) == "TYPE_CHECKING"):
                yield from node.body
        elif not typing and isinstance(node, ast.If | ast.Try | ast.With):
            yield from _statements(node.body, typing=False)
        elif not typing:
            yield node


@cache
def _imports(module: str, *, typing: bool = False) -> dict[tuple[str, str], str]:
    """(source, name) -> the module of ours that an import at the top of ``module`` loads."""
    found: dict[tuple[str, str], str] = {}
    for node in _statements(ast.parse(MODULES[module].read_text()).body, typing=typing):
        if isinstance(node, ast.Import):
            found |= {(alias.name, ""): alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in (alias.name for alias in node.names):
                inside = f"{node.module}.{name}"
                found[node.module, name] = inside if inside in MODULES else node.module
    return {key: source for key, source in found.items() if source in MODULES}


def _loaded(module: str) -> set[str]:
    """The modules of ours that importing ``module`` loads, itself included; nothing is imported for it."""
    loaded: set[str] = set()
    waiting = [module]
    while waiting:
        parts = waiting.pop().split(".")
        for one in (".".join(parts[:count]) for count in range(1, len(parts) + 1)):
            if one in loaded or one not in MODULES:
                continue
            loaded.add(one)
            for (source, name), target in _imports(one).items():
                waiting.append(target)
                # A package that imports the name on first use does so now.
                deferred = {key[1]: held for key, held in _imports(source, typing=True).items()} if source else {}
                waiting += [deferred[name]] if name in deferred else []
    return loaded


def test_a_stage_loads_few_modules() -> None:
    """What a stage loads is what must be read to change it: packages import on first use, not all that they hold."""
    loaded = _loaded("qa_train.train.pretrain")
    assert {
        "qa_train.train.flow",
        "qa_train.config.settings.stages",
        "qa_train.utils.deferred",
        "qa_train.model",
    } <= loaded
    assert len(loaded) <= 50, f"{len(loaded)} modules: {sorted(loaded)}"
    assert not [name for name in loaded if name.startswith(("qa_train.command", "qa_train.eval", "qa_train.infer"))]


def _room(module: str) -> str:
    if module.startswith("data_pipelines"):
        return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    parts = module.split(".")[1:]
    if module == "qa_train" or (len(parts) == 1 and MODULES[module].name != "__init__.py"):
        return "cli"
    package = len(parts) - (MODULES[module].name != "__init__.py")
    return ".".join(parts[:package])


def _circle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def test_no_circles() -> None:
    """Neither between modules nor, by the table itself, between rooms."""
    assert _circle(_graph()) is None
    # A version number is all that the modules below take from the package itself.
    assert _circle({room: rooms - {"cli"} for room, rooms in MAY_IMPORT.items()}) is None
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room: str) -> None:
    inside = [module for module in MODULES if _room(module) == room]
    found = {_room(other): f"{module} imports {other}" for module in inside for other in _graph()[module]}
    wrong = [why for other, why in found.items() if other not in {room, "utils", *MAY_IMPORT[room]}]
    assert not wrong, f"{wrong}: {room} may import {sorted(MAY_IMPORT[room])}"
    # The table is the picture of the architecture: it says no more than there is.
    assert not MAY_IMPORT[room] - set(found), f"{room} does not import all that the table allows"


def test_only_the_version_is_taken_from_the_package_itself() -> None:
    for module, others in _graph().items():
        wrong = {other for other in others if _room(other) == "cli"} - {"qa_train"}
        assert _room(module) == "cli" or not wrong, f"{module} imports {wrong}"


def test_every_module_has_a_room() -> None:
    assert {_room(module) for module in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_outside_libraries_have_their_places(path: Path) -> None:
    imports = {f"{module}.{name}".rstrip(".") for module, name in _names(path)}
    libraries = {name.split(".")[0] for name in imports}
    for library, files in OWNERS.items():
        assert library not in libraries or str(path.relative_to(ROOT)) in files, f"only {files} may import {library}"
    for package, banned in BANNED.items():
        if str(path.relative_to(ROOT)).startswith(f"qa_train/{package}/"):
            wrong = [name for name in imports for ban in banned if name == ban or name.startswith(f"{ban}.")]
            assert not wrong, f"{path} imports {wrong}, which {package} may not"


def test_no_module_has_the_name_of_another() -> None:
    """A name that stands twice is looked for in the wrong folder."""
    names = [path.stem for path in FILES if not path.name.startswith("__")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_package_says_what_lives_there() -> None:
    for path in FILES:
        if path.name == "__init__.py":
            assert len(ast.get_docstring(ast.parse(path.read_text())) or "") > 40, f"{path} needs a docstring"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_stay_readable(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{path}:{node.lineno} {node.name} has {length} lines: split it"


def test_no_unsafe_loading() -> None:
    for path in FILES:
        text = path.read_text()
        for word in ("pickle.load", "trust_remote_code=True", "weights_only=False", "shell=True"):
            assert word not in text, f"{path} uses {word}"
