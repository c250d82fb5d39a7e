"""What an import did: counted, explained with examples, and written beside the shards."""

from __future__ import annotations

from dataclasses import dataclass, field

EXAMPLES = 5


@dataclass
class Report:
    """What an import read, made and left out, by reason; written beside the shards."""

    corpus: str
    split: str
    license: str
    listed: int = 0
    made: int = 0
    hours: float = 0.0
    shards: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def drop(self, name: str, reason: str, detail: str = "") -> None:
        """Count a left-out item, and keep the first few of each reason as examples."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            shown.append(f"{name}: {detail}" if detail else name)

    def text(self) -> str:
        """The report for a person."""
        lines = [f"{self.corpus}, {self.split}: {self.made} records, {self.hours:.3f} h in {self.shards} shards"]
        lines[0] += f" (licence: {self.license})"
        for reason, count in sorted(self.dropped.items(), key=lambda entry: -entry[1]):
            lines.append(f"  left out {count}: {reason}, e.g. {self.examples[reason][0]}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
