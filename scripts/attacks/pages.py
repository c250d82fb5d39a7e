"""Words of the command line, and run folders that the dashboard shows."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.attacks.changes import ODD, damage_bytes, odd_value
from scripts.red_team import Attempt


def settings(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Words of the command line, and what `qa-train` makes of them."""
    from omegaconf import OmegaConf

    from qa_train.config.compose import compose_stage

    keys: dict[str, list[str]] = {}
    for stage in ("pretrain", "sft", "dpo"):
        made = OmegaConf.to_container(
            OmegaConf.structured(compose_stage(stage, ["experiment=smoke", "stage=" + stage]))
        )
        keys[stage] = sorted(_paths(made, ""))
    for _ in range(rounds * 3):
        stage = draw.choice(sorted(keys))
        value = draw.choice(ODD)
        text = value if isinstance(value, str) and draw.random() < 0.5 else json.dumps(value)
        word = f"{draw.choice(['', '', '+', '++', '~'])}{draw.choice(keys[stage])}={text}"
        read = lambda p, s=stage, w=word: compose_stage(s, ["experiment=smoke", "stage=" + s, w])  # noqa: E731
        yield Attempt("settings: a value", f"{stage} {word!r:.100}", read, "either")


def _paths(value: Any, prefix: str) -> Iterator[str]:
    for key, each in value.items():
        if isinstance(each, dict) and each:
            yield from _paths(each, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


SECRET = "a-secret-of-this-machine"


def pages(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Run folders of others, as the dashboard shows them: no file of this machine, no script, no key on the page."""
    from qa_train.command_line.command_table import run as command
    from tests.report.parsed import Parsed
    from tests.test_dashboard import answered, make

    # Even a file that claims to be sound.
    (folder / "secret.ogg").write_text("OggS" + SECRET)

    def shown(change: Callable[[Path], Any]) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            run = make(place / "run", "dpo", steps=8)
            answered(run, clip_bytes=300)
            change(run)
            command("dashboard", [str(place)])
            page = (place / "dashboard.html").read_text()
            if any(word in page for word in (SECRET, _encoded("OggS" + SECRET), "key-of-a-user")):
                raise AssertionError("the page holds what it must not")
            Parsed.of(page).check(links=True)

        return read

    def clip(name: Any) -> Callable[[Path], None]:
        def change(run: Path) -> None:
            for path in (run / "held_out").glob("step-*/asr/predictions.jsonl"):
                rows = [json.loads(line) for line in path.read_text().splitlines()[:2]]
                path.write_text("".join(json.dumps({**row, "clip": name}) + "\n" for row in rows))

        return change

    def file(own: random.Random) -> Callable[[Path], None]:
        def change(run: Path) -> None:
            files = [p for p in sorted(run.rglob("*")) if p.suffix in (".json", ".jsonl", ".yaml")]
            path = own.choice(files)
            lines = path.read_text().splitlines()
            if path.suffix == ".jsonl" and own.random() < 0.7:
                place = own.randrange(len(lines))
                try:
                    lines[place] = json.dumps(odd_value(own, json.loads(lines[place])))
                except ValueError:  # the line that was cut
                    lines[place] = "null"
                path.write_text("\n".join(lines) + "\n")
            else:
                path.write_bytes(damage_bytes(own, path.read_bytes()))

        return change

    yield Attempt("pages: as saved", "a run", shown(lambda run: None), "accept")
    names = [*ODD, str(folder / "secret.ogg"), "../../../secret.ogg", "clips/../../../../secret.ogg", "https://a.b/c"]
    for name in names:
        yield Attempt("pages: a clip's name", f"{name!r:.60}", shown(clip(name)), "accept")
    for number in range(rounds):
        yield Attempt("pages: a damaged file", f"number {number}", shown(file(random.Random(draw.random()))), "either")


def _encoded(text: str) -> str:

    return base64.b64encode(text.encode()).decode()[:-4]
