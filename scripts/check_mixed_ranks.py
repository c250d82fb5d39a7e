"""Train where some ranks have audio and others have only text in the same step, and compare with one process.

    python scripts/check_mixed_ranks.py --steps 1400
    python scripts/check_mixed_ranks.py --steps 1400 --deepspeed zero2 --stage pretrain

Half of the samples have a clip, half are text only, and a batch holds one or two of them, so that about four in
ten steps are mixed. A rank that skipped the encoder would leave the others waiting in a collective for ever: the run's
own hang_timeout_s would end it. Exit code 1 when it does not come to its end or a loss differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.batches import open_data
from qa_train.data.shards.writer import ShardWriter
from qa_train.model.tokenizers import load_tokenizer

ROOT = Path(__file__).parent.parent
WORDS = "seven green birds sing over the quiet river while we wait".split()
TOKENS_PER_BATCH = 160
LIMIT = 1e-5


def make_shards(folder: Path, clips: int = 400) -> str:
    """A shard of chats, every other one (at random) with a clip; its path."""
    rng = np.random.default_rng(0)
    path = folder / "mixed.tar"
    with ShardWriter(path, max_samples=clips) as writer:
        for i in range(clips):
            heard = rng.random() < 0.5
            # A text is as long as a clip: batches hold samples of one length.
            words = " ".join(rng.choice(WORDS, int(rng.integers(2, 9 if heard else 13))))
            question = "<audio>What is said?" if heard else f"Repeat: {words}"
            record = {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": words}],
                "language": "en",
            }
            wave = rng.normal(0, 0.1, int(16_000 * rng.uniform(0.3, 1.5))).astype(np.float32)
            writer.write(f"{'audio' if heard else 'text'}-{i:03d}", record, [wave] if heard else [])
    return str(path)


def mixed_steps(shard: str, steps: int, ranks: int) -> int:
    """Steps in which one rank's batch has audio and another's has none."""
    source = SourceConfig(name="chats", shards=[shard], task="chat", template="chat")
    cfg = DataConfig(sources={"chats": source}, tokens_per_batch=TOKENS_PER_BATCH, shuffle_window=128)
    batches = open_data(cfg, load_tokenizer("builtin:nano"), 80, seed=0, batches_per_step=ranks)
    heard = [any("audio" in key for key in batches.keys(k)) for k in range(steps * ranks)]
    return sum(len(set(heard[i : i + ranks])) > 1 for i in range(0, steps * ranks, ranks))


def train(words: list[str], ranks: int, run: Path) -> list[float]:
    """The losses of a run, from its first step to its last."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, "-m", "qa_train", *words, f"run.dir={run}"], env=os.environ | quiet, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(
            f"{ranks} process(es) ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


def main() -> int:
    """Parse, train, compare, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--deepspeed", default="zero3")
    parser.add_argument("--stage", default="sft", choices=("pretrain", "sft"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mixed-") as name:
        folder = Path(name)
        shard = make_shards(folder)
        mixed = mixed_steps(shard, options.steps, options.ranks)
        words = [options.stage, "experiment=smoke", "data=empty", f"data.tokens_per_batch={TOKENS_PER_BATCH}"]
        words += [f"+data.sources={{chats:{{shards:['{shard}'],task:chat,template:chat}}}}", "data.seed=0"]
        words += ["data.shuffle_window=128", f"trainer.max_steps={options.steps}", "trainer.learning_rate=1e-4"]
        # Differences of the last bit grow with the steps: a low rate keeps them small.
        words += [f"trainer.batches_per_step={options.ranks}", "trainer.hang_timeout_s=120"]
        words += [f"trainer.save_steps={options.steps}"]
        zero = [f"deepspeed={options.deepspeed}"]
        if options.deepspeed.startswith("zero3"):
            # Every parameter is cut, however small.
            zero += ["deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0"]
        found = train([*words, *zero], options.ranks, folder / "ranks")
        expected = train(words, 1, folder / "one")
    worst = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(found, expected, strict=True))
    figures = {"steps": len(found), "mixed_steps": mixed, "ranks": options.ranks, "deepspeed": options.deepspeed}
    print("results: " + json.dumps(figures | {"largest_relative_difference_of_losses": float(f"{worst:.2g}")}))
    return int(worst > LIMIT or len(found) != options.steps or not mixed)


if __name__ == "__main__":
    sys.exit(main())
