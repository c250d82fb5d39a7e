"""Compare the greedy text of an export on held-out recordings: stock transformers against qa-train.

    python scripts/check_export.py EXPORT [--run RUN] [--clips 50] [--out result.json]

Ours: the unpadded model in batches with its own generator; with ``--run``, the model of the run that was exported, its
adapters applied and not merged, else that of the export. Theirs: ``Qwen2AudioForConditionalGeneration`` and
``Qwen2AudioProcessor`` on the export, each clip padded to 30 s, one at a time. Exits with 1 if any text differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from qa_train.config import EvalSetConfig, starter_dir
from qa_train.data.text.prompts import PromptBank
from qa_train.eval.answers import answer
from qa_train.eval.eval_sets import record_questions
from qa_train.eval.questions import part_text
from qa_train.infer.generate import Decoding, Generator
from qa_train.model import find_checkpoint, load_model
from qa_train.model.build import load_adapted
from qa_train.model.lora import has_adapters

MAX_NEW_TOKENS = 48


def questions(clips: int) -> list[Any]:
    """Held-out recordings in five languages, half of them asked as in pretraining and half as in a chat."""
    speech = [str(starter_dir() / "speech-test.tar")]
    bank = PromptBank.load()
    half = clips // 2
    return [
        *record_questions("base", EvalSetConfig(speech, "asr", limit=clips - half), bank),
        *record_questions("chat", EvalSetConfig(speech, "ask_transcript", "chat", limit=half), bank),
    ]


def stock_text(model: Any, processor: Any, question: Any, wave: Any) -> str:
    """What the stock model generates for one clip."""
    asked = part_text(question.sample.messages[-1])
    if question.sample.template == "base":
        text = f"<|audio_bos|><|AUDIO|><|audio_eos|>{asked}"
    else:
        content = [{"type": "audio", "audio_url": "x"}, {"type": "text", "text": asked}]
        chat = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, audio=wave, sampling_rate=16_000, return_tensors="pt")
    # A pretrained model ends its answers with <|endoftext|>, a chat model with <|im_end|>.
    ends = processor.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    with torch.inference_mode():
        out = model.generate(
            **inputs, max_new_tokens=MAX_NEW_TOKENS, min_new_tokens=1, do_sample=False, eos_token_id=ends
        )
    return str(processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def our_model(export: Path, run: Path | None) -> tuple[Any, Any]:
    """The model that was exported, with its adapters in place if it has some, or the export; and its processor."""
    folder = find_checkpoint(run or export)
    if not has_adapters(folder):
        return load_model(folder)
    model, processor = load_adapted(folder)
    return model.get_base_model(), processor


def main() -> int:
    """Compare, print the differences and how long both took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--run", type=Path, help="the run or checkpoint that was exported")
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    asked = questions(options.clips)
    waves = [question.load() for question in asked]
    model, processor = our_model(options.export, options.run)
    started = time.process_time()
    ours = [one.text.strip() for one in answer(asked, Generator(model, processor), Decoding(MAX_NEW_TOKENS))]
    middle = time.process_time()
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(options.export).eval()
    stock_processor = AutoProcessor.from_pretrained(options.export)
    theirs = [stock_text(stock, stock_processor, q, wave[0]) for q, wave in zip(asked, waves, strict=True)]
    ended = time.process_time()
    different = [(o, t) for o, t in zip(ours, theirs, strict=True) if o != t]
    for mine, other in different:
        print(f"ours: {mine!r}\nstock: {other!r}\n")
    figures = {
        "clips": len(asked),
        "same": len(asked) - len(different),
        "empty": sum(not text for text in ours),
        "distinct": len(set(ours)),
        "adapters": any("lora_A" in name for name, _ in model.named_modules()),
        "cpu_s_ours": round(middle - started, 2),
        "cpu_s_stock": round(ended - middle, 2),
    }
    print(json.dumps(figures))
    if options.out:
        options.out.write_text(json.dumps(figures))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
