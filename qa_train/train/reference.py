"""The reference of a DPO run: which weights it is, pinned in the run folder, and its log-probabilities if precomputed.

``run.dir/reference/reference.json`` describes the reference: kind, digest of the weights, arithmetic, ``ld_alpha``.
A resume with a different reference is refused. A precomputed reference also has ``logps.parquet``: one row per pair (by
its tokens and clips) with the log-probabilities of its two answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from accelerate.utils import gather_object

from qa_train.data.batches import PreferenceBatches
from qa_train.data.order.batch_plan import SampleRef
from qa_train.train.job.distributed import from_main
from qa_train.utils.atomic import whole, write_json
from qa_train.utils.digests import sha256_of_file
from qa_train.utils.progress import say

_TABLE = "logps.parquet"
_FACTS = "reference.json"


class Reference:
    """The run's reference and its stored description."""

    def __init__(self, folder: Path, facts: dict[str, Any], *, is_main: bool) -> None:
        """``facts`` of the reference this run would use now. All processes must come here together.

        Raises:
            ValueError: the run began with another reference, or its table is damaged.
        """
        self.folder, self.facts, self.is_main = folder, facts, is_main
        self.table: dict[str, tuple[float, float]] = {}
        # Batches covered by the table: plan fingerprint, end and first; empty while pairs are missing.
        self._filled: list[Any] = []
        path = folder / _FACTS
        if is_main and path.exists():
            self._take(json.loads(path.read_text(encoding="utf-8")))
        # The folder may be on a disk that only the first process sees.
        self.table, self._filled = from_main((self.table, self._filled))

    def pin(self) -> None:
        """Write the description of the reference (main process; again after every change of the table)."""
        if not self.is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {"facts": self.facts}
        if self.facts["kind"] == "precomputed":
            self._write_table()
            record |= {"table": sha256_of_file(self.folder / _TABLE), "pairs": len(self.table), "filled": self._filled}
        write_json(self.folder / _FACTS, record)

    def fill(
        self, trainer: Any, batches: PreferenceBatches, num_batches: int, tokens_per_batch: int, *, first: int = 0
    ) -> int:
        """Compute missing rows of the table for the batches from ``first`` to before ``num_batches``; each process does
        a share.

        The model before its first step answers, or ``trainer.ref_model`` where there is one (an engine of DeepSpeed's).
        Returns the number of pairs computed (over all processes). The batches carry the values from then on.
        """
        wanted = [batches.fingerprint, num_batches, first]
        missing: dict[str, tuple[SampleRef, int]] = {}
        # A table of an older version starts at batch 0 and has no entry for it.
        filled = self._filled[:2] == wanted[:2] and (self._filled[2:] or [0])[0] <= first
        if not filled:
            for k in range(first, num_batches):
                for ref in batches.plan.batch(k):
                    name, tokens = batches.pair_id(ref)
                    if name not in self.table:
                        missing[name] = (ref, tokens)
        if missing and self.is_main:
            say(f"reference log-probabilities of {len(missing)} pairs, computed once")
        groups = _groups(list(missing.values()), tokens_per_batch)
        found = []
        state = PartialState()
        together = trainer.ref_model is not None
        if together and len(groups) % state.num_processes:
            # All processes take part in every forward of a sharded model: some repeat the first group.
            groups += groups[:1] * (state.num_processes - len(groups) % state.num_processes)
        model = trainer.ref_model if together else trainer.model.to(trainer.args.device)
        training = model.training
        model.eval()
        for group in groups[state.process_index :: state.num_processes]:
            batch, names = batches.build_pairs(group)
            if names or together:
                inputs = trainer._prepare_inputs(batch)
                chosen, rejected = trainer.compute_ref_log_probs(model, inputs)
                found += list(zip(names, chosen.tolist(), rejected.tolist(), strict=bool(names)))
        model.train(training)
        for name, chosen, rejected in gather_object(found):
            self.table[name] = (chosen, rejected)
        if not filled:
            # Pairs that could not be read now may be readable at the next start, which looks for them again.
            self._filled = wanted if missing.keys() <= self.table.keys() else []
            self.pin()
        batches.references = self.table
        return len(missing)

    def _take(self, record: dict[str, Any]) -> None:
        """The stored reference, if it is the same."""
        before = record["facts"]
        changed = [name for name in self.facts if before.get(name) != self.facts[name]]
        if changed:
            was = ", ".join(f"{name} {str(before.get(name))[:16]} -> {str(self.facts[name])[:16]}" for name in changed)
            raise ValueError(
                f"the run in {self.folder.parent} began with another reference ({was}): restore the model and the "
                "settings it began with, or train in another run.dir"
            )
        if self.facts["kind"] != "precomputed":
            return
        path = self.folder / _TABLE
        if not path.exists() or sha256_of_file(path) != record["table"]:
            raise ValueError(
                f"{path} is not the file that {_FACTS} speaks of: restore it, or remove the folder {self.folder} "
                "to compute the reference again"
            )
        table = pq.read_table(path).to_pydict()
        pairs = zip(table["chosen"], table["rejected"], strict=True)
        self.table = dict(zip(table["pair"], pairs, strict=True))
        self._filled = record["filled"]

    def _write_table(self) -> None:
        names = sorted(self.table)
        columns = {
            "pair": pa.array(names, pa.string()),
            "chosen": pa.array([self.table[name][0] for name in names], pa.float64()),
            "rejected": pa.array([self.table[name][1] for name in names], pa.float64()),
        }
        with whole(self.folder / _TABLE) as part:
            pq.write_table(pa.table(columns), part)


def _groups(pairs: list[tuple[SampleRef, int]], tokens: int) -> list[list[SampleRef]]:
    """Pairs in batches of at most ``tokens`` tokens, longest first: a memory shortage shows at once."""
    groups: list[list[SampleRef]] = []
    filled = 0
    for ref, size in sorted(pairs, key=lambda pair: -pair[1]):
        if not groups or filled + size > tokens:
            groups.append([])
            filled = 0
        groups[-1].append(ref)
        filled += size
    return groups
