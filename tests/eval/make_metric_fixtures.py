"""Makes fixtures/{labels,cpwer}.json: made answers, and what scikit-learn and meeteval say of them.

    python tests/eval/make_metric_fixtures.py tests/eval/fixtures

scikit-learn 1.9.1: accuracy_score (as the released MELD and VocalSound scripts), f1_score over the classes of the
references, average_precision_score per class. meeteval 0.4.3: cp_word_error_rate of turns by speaker. Nothing of
``qa_train`` is imported. Seed 20.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

SETS, ITEMS, MEETINGS = 20, 30, 300
LABELS = ["neutral", "joy", "anger", "throat clearing", "sniff"]
# None that a normaliser of texts changes.
WORDS = "the a rain falls on roof dog barks loud people talk far away slowly often".split()
NAMES = ["Ann", "Bob", "Cy", "Dee"]


def label_sets(draw: random.Random) -> list[dict[str, Any]]:
    """Each with pairs of (reference, answer), and lists of labels with their answers."""
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score

    sets = []
    for _ in range(SETS):
        known = draw.sample(LABELS, draw.randrange(2, 6))
        wanted = [draw.choice(known) for _ in range(ITEMS)]
        said = [w if draw.random() < 0.5 else draw.choice([*LABELS, "something else", ""]) for w in wanted]
        classes = sorted(set(wanted))
        several = [sorted(draw.sample(known, draw.randrange(1, len(known) + 1))) for _ in range(ITEMS)]
        listed = [draw.sample(LABELS, draw.randrange(0, 4)) for _ in range(ITEMS)]
        present = sorted({label for group in several for label in group})
        precision = [
            average_precision_score([c in group for group in several], [float(c in group) for group in listed])
            for c in present
        ]
        sets.append({
            "pairs": list(zip(wanted, said, strict=True)), "accuracy": 100 * accuracy_score(wanted, said),
            "macro_f1": 100 * f1_score(wanted, said, labels=classes, average="macro", zero_division=0),
            "lists": list(zip(several, listed, strict=True)), "map": 100 * sum(precision) / len(precision),
        })  # fmt: skip
    return sets


def turns(words: dict[str, list[str]], draw: random.Random) -> str:
    """The words of each speaker in turns, the speakers' turns mixed and each speaker's order kept."""
    left, lines = {name: list(said) for name, said in words.items()}, []
    while any(left.values()):
        name = draw.choice([n for n in left if left[n]])
        count = draw.randrange(1, 6)
        lines.append(f"{name}: {' '.join(left[name][:count])}")
        left[name] = left[name][count:]
    return "\n".join(lines)


def meetings(draw: random.Random) -> list[list[Any]]:
    """Rows of (reference, answer, errors, reference words)."""
    from meeteval.wer import cp_word_error_rate

    rows = []
    for _ in range(MEETINGS):
        wanted = {n: draw.choices(WORDS, k=draw.randrange(1, 12)) for n in draw.sample(NAMES, draw.randrange(1, 5))}
        said: dict[str, list[str]] = {}
        for i, words in enumerate(wanted.values()):
            kept = [draw.choice(WORDS) if draw.random() < 0.15 else w for w in words if draw.random() < 0.85]
            if draw.random() < 0.9:
                said[f"speaker {draw.randrange(9)}{i}"] = kept
        if draw.random() < 0.2:
            said["one more"] = draw.choices(WORDS, k=3)
        said = {name: words for name, words in said.items() if words}
        found = cp_word_error_rate(
            {n: " ".join(w) for n, w in wanted.items()}, {n: " ".join(w) for n, w in said.items()}
        )
        rows.append([turns(wanted, draw), turns(said, draw), found.errors, found.length])
    return rows


def main(out: str) -> None:
    draw = random.Random(20)
    for name, rows in {"labels": label_sets(draw), "cpwer": meetings(draw)}.items():
        lines = ",\n".join(json.dumps(row) for row in rows)
        Path(out, f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        print(name, len(rows), len(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
