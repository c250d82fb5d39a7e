"""Checkpoints, adapters and the states of a training."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.attacks.changes import flip_file, odd_json
from scripts.red_team import Attempt, apart, executed

_MODEL_FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json", "base.json",
                "adapter_config.json", "tokenizer.json")  # fmt: skip


def models(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Whole checkpoints and adapters, as every command loads them."""
    from qa_train.model import load_model
    from tests.model import test_loading as tests
    from tests.model.stored import write_adapters, write_model

    whole, adapters = folder / "whole", folder / "adapters"
    apart(lambda: [str(write_model(whole)), str(write_adapters(adapters))])

    def attempt(
        kind: str, name: str, adapted: bool, manifest: bool, change: Callable[[Path], Any], must: str
    ) -> Attempt:
        def read(place: Path) -> None:
            made = place / "checkpoint-2"
            shutil.copytree(adapters if adapted else whole, made)
            if not manifest:
                (made / "manifest.json").unlink()
            (made / "evil.py").write_text(f"open({str(executed(folder))!r}, 'w')\n")
            change(made)
            load_model(made)

        return Attempt(kind, name, read, must)

    yield attempt("models: as saved", "a checkpoint", False, True, lambda f: None, "accept")
    yield attempt("models: as saved", "adapters", True, True, lambda f: None, "accept")
    for name, adapted, change in tests.CHANGED:
        yield attempt("models: of the tests", name, adapted, True, change, "refuse")
    for name, adapted, change, _ in tests.UNFIT:
        yield attempt("models: of the tests", name, adapted, False, change, "refuse")
    for name, changes, _ in tests.CONFIG:
        yield attempt("models: of the tests", name, False, False, tests.edit("config.json", **changes), "refuse")
    for file, changes in tests.BRINGS:
        if (whole / file).is_file():
            change = tests.edit(file, **changes)
            yield attempt("models: of the tests", f"code in {file}", False, False, change, "refuse")
    for changes, _ in tests.ODD:
        change = tests.edit("adapter_config.json", **changes)
        yield attempt("models: of the tests", f"adapters with {changes}", True, False, change, "refuse")
    for name, found, _ in tests.BASES:
        change = lambda f, g=found: tests.edit("base.json", **g(f))(f)  # noqa: E731
        yield attempt("models: of the tests", f"a base: {name}", True, False, change, "refuse")
    for number in range(rounds):
        adapted = number % 3 == 0
        for kind, manifest, act in (
            ("models: a bit, with manifest", True, flip_file),
            ("models: a bit, without", False, flip_file),
            ("models: a field, without", False, lambda d, f: odd_json(d, f, _MODEL_FILES)),
        ):
            own = random.Random(draw.random())
            # A changed weight is a weight, and some fields are of no importance.
            must = "refuse" if manifest else "either"
            yield attempt(kind, f"number {number}", adapted, manifest, lambda f, a=act, d=own: a(d, f), must)


def states(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """The states and manifests of a training, as a resume reads them."""
    from qa_train.model.stored.manifest import damage
    from qa_train.train.job.states import fault
    from tests.train import test_states as tests

    def said(reason: str | None) -> None:
        if reason is not None:
            raise ValueError(reason)

    def forged(zero: bool, forge: Callable[[Path, Path], Any]) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            checkpoint = tests.make(place, 2, zero=zero)
            forge(checkpoint, executed(folder))
            # The forger's checksums are right.
            tests.commit(checkpoint, zero)
            said(fault(checkpoint))

        return read

    def other_manifest(own: random.Random) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            checkpoint = tests.make(place, 2)
            odd_json(own, checkpoint, ("manifest.json",))
            said(damage(checkpoint))

        return read

    yield Attempt("states: as saved", "whole", forged(False, lambda f, out: None), "accept")
    yield Attempt("states: as saved", "ZeRO", forged(True, lambda f, out: None), "accept")
    for name, zero, forge in tests.FORGED:
        yield Attempt("states: of the tests", name, forged(zero, forge), "refuse")
    for number in range(rounds):
        own = random.Random(draw.random())
        flip = forged(number % 2 == 0, lambda f, out, d=own: flip_file(d, f))  # type: ignore[misc]
        yield Attempt("states: a bit, right checksums", f"number {number}", flip, "either")
        yield Attempt("states: a field of the manifest", f"number {number}", other_manifest(own), "either")
