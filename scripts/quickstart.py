"""The quickstart: data, three stages, an evaluation after each, an export and a report.

    python scripts/quickstart.py [FOLDER] [--short | --smoke]

Every part leaves its result on disk and is skipped when it is there, so the same command
continues after an interruption. ``--short`` does about a third of everything and still learns;
``--smoke`` runs the same parts for a few steps each: it proves that they work, no more
(quickstart_recipes.py). Before it starts it measures how long this machine will take
(quickstart_time.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread
from typing import Any

import quickstart_time
from quickstart_recipes import PARTS, RECIPES, Recipe, experiment
from quickstart_report import TITLES, write_results

from qa_train.config import starter_dir
from qa_train.report import headline
from qa_train.utils.atomic import write_json
from qa_train.utils.process import end_with_parent
from qa_train.utils.progress import duration

# Two processes of one thread train faster than one of two: most operations of so small a model are too short to share.
PROCESSES = min(2, len(os.sched_getaffinity(0)))
# Between two reports while a part goes on.
REPORT_S = 600.0
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
# Read by transformers, too: no bars for weights that are loaded and files that are written, here and in every process
# that starts from here.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


class Quickstart:
    """The parts in order; ``seconds`` remembers what each took, over all starts."""

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.root, self.recipe = root, recipe
        self.root.mkdir(parents=True, exist_ok=True)
        self.data = root / "data"
        self.log = root / "seconds.json"
        self.clock: quickstart_time.Clock | None = None
        self.seconds: dict[str, float] = json.loads(self.log.read_text()) if self.log.is_file() else {}
        install = float(os.environ.get("QUICKSTART_INSTALL_SECONDS", 0))
        self.seconds["install"] = max(install, self.seconds.get("install", 0.0))
        # Started once: each process keeps what the frozen encoder made of the held-out clips.
        self.pool = ProcessPoolExecutor(PROCESSES, get_context("spawn"), end_with_parent)

    def outputs(self) -> dict[str, Path]:
        """What each part leaves behind: where it is there, the part is done."""
        root, evaluated = self.root, self.root / "eval"
        return {
            "data": self.data / "done",
            "untrained model": root / "before" / "config.json",
            "preference pairs": self.data / "pairs-sampled.json",
            "export": root / "export" / "config.json",
            **{stage: root / stage / "finished.json" for stage in ("pretrain", "sft", "dpo")},
            **{f"evaluate {stage}": evaluated / f"{stage}.json" for stage in ("before", "pretrain", "sft", "dpo")},
        }

    def plan(self, agreed: bool) -> None:
        """Measure this machine, print the time of each part, and exit if hours were not agreed to (``--yes``)."""
        done = {part for part, output in self.outputs().items() if output.exists()}
        if len(done) == len(PARTS):
            return
        print("measuring how fast this machine is ...", flush=True)
        found = quickstart_time.measured(self.pool, PROCESSES)
        times = quickstart_time.expected(found, self.recipe, PROCESSES)
        self.clock = quickstart_time.Clock(times, done)
        left = self.clock.left()
        print(
            f"the {self.recipe.name} recipe takes about {duration(left)} here ({PROCESSES} processes, "
            f"{found.arithmetic}: {found.step:.2g} s for a training step, {1 / found.encoder:.0f} s of audio encoded "
            "in a second):"
        )
        if found.busy > 1.2:
            print(f"(other programs use the processors, too: without them it would be {found.busy:.1f} times as fast)")
        print(self.clock.table(), flush=True)
        short = sum(quickstart_time.expected(found, RECIPES["short"], PROCESSES).values())
        folder = "" if self.root == default_folder("full") else str(self.root)
        words, start = quickstart_time.advice(left, short, self.recipe, folder, agreed)
        if not start:
            sys.exit(words)
        if words:
            print(words)
        quickstart_time.remember(self.root / "plan.json", self.recipe, found)

    def part(self, name: str, work: Callable[[], None]) -> None:
        """Do ``work`` unless its output exists, and add its time to the books."""
        output = self.outputs()[name]
        if output.exists():
            print(f"[{name}] done before")
            return
        print(f"\n[{name}]", flush=True)
        started = time.perf_counter()
        try:
            with self.reporting(name, started):
                work()
        finally:
            took = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            write_json(self.log, self.seconds)
        if not output.exists():
            sys.exit(f"quickstart: {name} ended without making {output}")
        if self.clock is not None:
            print(f"[{name}] {duration(took)}; {self.clock.finish(name, took)}", flush=True)
        self.report()

    @contextmanager
    def reporting(self, name: str, started: float) -> Iterator[None]:
        """Write the report every ``REPORT_S`` meanwhile: curves grow, and a part may take hours."""
        ended = Event()

        def renew() -> None:
            while not ended.wait(REPORT_S):
                self.report(name, time.perf_counter() - started)

        thread = Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def report(self, now: str = "", spent: float = 0.0) -> None:
        """report.html as far as it is; that it cannot be written stops nothing.

        now: the part under way, which began ``spent`` seconds ago.
        """
        missing = [part for part, output in self.outputs().items() if not output.exists()]
        waiting = [part for part in PARTS if part in missing]
        left = self.clock.left(now, spent) if self.clock is not None else None
        progress = {"done": len(PARTS) - len(waiting), "parts": len(PARTS), "left_s": left}
        progress |= {"now": now, "spent_s": spent} if now else {}
        try:
            write_results(self, progress | {"next": waiting[0] if waiting else None})
        except (OSError, ValueError) as error:
            print(f"report.html is not written: {error}", flush=True)

    def close(self) -> None:
        """End the processes of the pool."""
        self.pool.shutdown()

    def command(self, *words: str, processes: int = 1) -> None:
        """Run a qa-train command and show it, so that it can be repeated by hand."""
        torchrun = ["torchrun", "--standalone", "--nproc-per-node", str(processes), "-m", "qa_train"]
        print("$ " + " ".join([*(torchrun if processes > 1 else ["qa-train"]), *words]), flush=True)
        modules = ["-m", "torch.distributed.run", *torchrun[1:]] if processes > 1 else ["-m", "qa_train"]
        code = subprocess.run([sys.executable, *modules, *words]).returncode
        if code == 75:
            sys.exit("quickstart: stopped by a signal; the same command continues")
        if code:
            sys.exit(f"quickstart: qa-train {words[0]} failed with code {code}; remove the cause and start it again")

    def train(self, stage: str) -> None:
        """One stage with its quickstart experiment."""
        where = [f"data.root={self.root}", f"run.dir={self.root / stage}"]
        self.command(
            stage, f"experiment=quickstart_{stage}", *where, *self.recipe.overrides(stage), processes=PROCESSES
        )


def default_folder(recipe: str) -> Path:
    """The folder of a recipe if none is given."""
    return Path("runs/quickstart" + ("" if recipe == "full" else f"-{recipe}"))


def evaluation_sets(root: Path, stage: str) -> dict[str, Any]:
    """What is measured after ``stage``: the sets of its experiment, under their titles."""
    cfg = experiment("pretrain" if stage == "before" else stage, f"data.root={root}")
    return {
        TITLES[name]: dataclasses.replace(each, template=each.template or cfg.kind.template)
        for name, each in cfg.evaluation.sets.items()
    }


def evaluate(quick: Quickstart, stage: str) -> None:
    """Answer every evaluation set with the model after ``stage`` and keep the scores."""
    sets = evaluation_sets(quick.root, stage)
    if quick.recipe.items is not None:
        sets = {name: shortened(each, quick.recipe.items) for name, each in sets.items()}
    # Before DPO the model is its own reference, and every reward is zero.
    pairs = quick.pool.submit(preference_scores, quick.root, quick.recipe.items) if stage == "dpo" else None
    clips = quick.root / "eval" / "clips"
    # The run, or the untrained model before them.
    jobs = {
        name: quick.pool.submit(evaluate_set, str(quick.root / stage), name, each, clips) for name, each in sets.items()
    }
    print(f"answering {len(sets)} sets of held-out items; %, translation in chrF, with 95 % intervals", flush=True)
    scores = {}
    for name, job in jobs.items():
        scores[name] = result = job.result()
        print(
            f"  {name:<44} {result['value']:6.1f} "
            f"({result['ci_low']:.1f} to {result['ci_high']:.1f}), n = {result['n']}",
            flush=True,
        )
    for name, result in (pairs.result() if pairs else {}).items():
        scores[name] = result
        print(f"  {name:<44} {result['value']:6.1f}, n = {result['n']}")
    write_json(quick.root / "eval" / f"{stage}.json", scores)


@lru_cache(maxsize=1)
def heard() -> Any:
    """What this process's encoder made of held-out clips: it is frozen, so each is encoded once for all stages."""
    from qa_train.infer.encoded import EncodedClips

    return EncodedClips()


@lru_cache(maxsize=2)
def loaded(checkpoint: str) -> tuple[Any, Any]:
    """Model and processor, kept for the next set."""
    import torch

    from qa_train.model import load_answering_model

    torch.set_num_threads(1)
    return load_answering_model(checkpoint)


def evaluate_set(checkpoint: str, name: str, eval_set: Any, clips_dir: Path) -> dict[str, Any]:
    """The result of one evaluation set, in a process of the pool."""
    from qa_train.eval.eval_sets import evaluate_shards
    from qa_train.infer.generate import Decoding

    model, processor = loaded(checkpoint)
    decoding = Decoding(max_new_tokens=48)
    return evaluate_shards(
        model, processor, {name: eval_set}, decoding=decoding, keep_samples=3, clips_dir=clips_dir, clips=heard()
    )[name]


def shortened(eval_set: Any, items: int) -> Any:
    """The same set with at most so many items."""
    return dataclasses.replace(eval_set, limit=min(items, eval_set.limit or items))


def preference_scores(root: Path, items: int | None) -> dict[str, Any]:
    """Accuracy on held-out pairs, at most ``items``: log-ratio of the last model to the one before DPO."""
    from qa_train.config import DataConfig, SourceConfig
    from qa_train.data.batches import open_data
    from qa_train.preferences.pair_accuracy import pair_accuracy

    reference, processor = loaded(str(root / "sft"))
    model, _ = loaded(str(root / "dpo"))
    shards = [str(root / "data" / "dpo-test.tar")]
    source = SourceConfig(name="pairs", shards=shards, task="chat", template="chat", max_samples=items)
    probe = DataConfig(sources={"pairs": source})
    data = open_data(probe, processor.tokenizer, 80, seed=0, batches_per_step=1, preference=True)
    # One window of that many samples is one pass over the pairs.
    probe.shuffle_window = sum(each.eligible.counts.samples for each in data.sources)
    data = open_data(probe, processor.tokenizer, 80, seed=0, batches_per_step=1, preference=True)
    batches = len(data.plan.window(0).batches)
    return {"held-out pairs, reward": pair_accuracy(model, reference, data, batches)}


def save_untrained(quick: Quickstart) -> None:
    """The model before any training, so that "before" is measured and not assumed."""
    from qa_train.model import build_model
    from qa_train.train.job.distributed import name_accelerator

    name_accelerator()
    cfg = experiment("pretrain")
    model, processor = build_model(cfg.model, seed=cfg.run.seed)
    folder = quick.root / "before"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_data(quick: Quickstart) -> None:
    """Synthetic speech, notes, spoken questions and rule-made preference pairs."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from scripts.quickstart_data.build import Sizes, build

    build(starter_dir(), quick.data, Sizes(**quick.recipe.sizes))
    (quick.data / "done").touch()


def sample_pairs(quick: Quickstart) -> None:
    """The transcripts of training clips, each against the SFT model's worst answer by word error rate."""
    from qa_train.config import EvalSetConfig
    from qa_train.data.shards.writer import ShardWriter
    from qa_train.data.text.prompts import PromptBank
    from qa_train.eval.answers import Limits
    from qa_train.infer.generate import Generator
    from qa_train.model import load_answering_model
    from qa_train.preferences.draw import sampled_pairs
    from qa_train.preferences.rank import ByWordErrors

    model, processor = load_answering_model(quick.root / "sft")
    generator, limits = Generator(model, processor), Limits(64, 32768)
    clips = EvalSetConfig([str(quick.data / "asr-train-*.tar")], "ask_transcript", "chat", metric="wer",
                    min_words=3, limit=quick.recipe.pair_clips)  # fmt: skip
    print(f"answering {clips.limit} recordings, each several times, to rank the answers", flush=True)
    count = 0
    with ShardWriter(str(quick.data / "pairs-sampled-%03d.tar")) as writer:
        # A chosen answer with errors of its own would teach them through the SFT term.
        ranker = ByWordErrors(transcript=True)
        for pair in sampled_pairs(generator, clips, PromptBank.load(), limits=limits, ranker=ranker, seed=1):
            writer.write(pair.key, pair.record("train"), [pair.wave])
            count += 1
    print(f"{count} pairs from {clips.limit} clips")
    write_json(quick.data / "pairs-sampled.json", {"pairs": count, "clips": clips.limit})


def main() -> None:
    """Run every part."""
    options = arguments()
    recipe = RECIPES[options.recipe]
    root = options.folder or default_folder(recipe.name)
    if (other := quickstart_time.recipe_of(root / "plan.json", recipe.name)) != recipe.name:
        word = "" if other == "full" else f" --{other}"
        sys.exit(
            f"quickstart: {root} holds the recipe {other!r}: go on with scripts/quickstart.sh {root}{word}, "
            f"or choose another folder for {recipe.name!r}"
        )
    quick = Quickstart(root, recipe)
    (quick.root / "eval").mkdir(exist_ok=True)
    print(f"everything goes to {quick.root}; stop and start as you like: the same command continues")
    print(f"{quick.root / 'report.html'} shows how far it is")
    if recipe.note:
        print(recipe.note)
    # However it ends, the processes of the pool end first.
    with closing(quick):
        run_parts(quick, options.yes)

    path = write_results(quick)
    told = headline(json.loads(path.read_text()))
    print("\n" + ", ".join(f"{figure} {words}" for figure, words in told))
    print(f"\nask it about a recording of your own:\n  qa-train chat checkpoint={quick.root / 'export'} audio=FILE.wav")
    print(f"report:  {quick.root / 'report.html'}")
    print(f"results: {path}")


def run_parts(quick: Quickstart, agreed: bool) -> None:
    """The plan, and every part that is not done."""
    quick.plan(agreed)
    quick.report()

    quick.part("data", lambda: make_data(quick))
    quick.part("untrained model", lambda: save_untrained(quick))
    quick.part("evaluate before", lambda: evaluate(quick, "before"))
    quick.part("pretrain", lambda: quick.train("pretrain"))
    quick.part("evaluate pretrain", lambda: evaluate(quick, "pretrain"))
    quick.part("sft", lambda: quick.train("sft"))
    quick.part("evaluate sft", lambda: evaluate(quick, "sft"))
    quick.part("preference pairs", lambda: sample_pairs(quick))
    quick.part("dpo", lambda: quick.train("dpo"))
    quick.part("evaluate dpo", lambda: evaluate(quick, "dpo"))
    export = quick.root / "export"
    quick.part("export", lambda: quick.command("export", f"checkpoint={quick.root / 'dpo'}", f"out={export}"))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where everything is written (default: runs/quickstart)")
    kinds = parser.add_mutually_exclusive_group()
    for name, text in (
        (
            "short",
            "about a third of everything, which still learns (default folder: runs/quickstart-short)",
        ),
        ("smoke", "a few steps of everything, to see that it works"),
    ):
        kinds.add_argument(f"--{name}", dest="recipe", action="store_const", const=name, default="full", help=text)
    parser.add_argument("--yes", action="store_true", help="start even if this machine will take more than an hour")
    return parser.parse_args()


if __name__ == "__main__":
    main()
