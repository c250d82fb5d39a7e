"""The inputs of scripts/red_team.py: those of the tests, one by one, and random ones, by what reads them.

Each room is a function that gets a folder, the number of random inputs and a random generator, and yields attempts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.attacks.clients import requests
from scripts.attacks.pages import pages, settings
from scripts.attacks.shards import audio, indexes, tars
from scripts.attacks.stored import models, states
from scripts.red_team import Attempt

KINDS: dict[str, Callable[[Path, int, random.Random], Iterator[Attempt]]] = {
    "models": models,
    "states": states,
    "indexes": indexes,
    "tars": tars,
    "audio": audio,
    "settings": settings,
    "requests": requests,
    "pages": pages,
}
