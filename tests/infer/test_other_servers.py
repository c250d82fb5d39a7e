"""An export in the servers that others use: `transformers serve` is started.

For vLLM and llama.cpp the names of weights and sizes are compared with those that they read.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
import torch
from fake_model import tone
from safetensors import safe_open
from transformers import AutoProcessor

from qa_train.config import EncoderConfig, LanguageModelConfig, ModelConfig, ServeConfig
from qa_train.data.audio.waveform import audio_tokens
from qa_train.data.text.template import encode_prompt
from qa_train.export.hugging_face import export
from qa_train.infer.generate import Decoding, Generator, Item
from qa_train.infer.request import parse
from qa_train.model import build_model, load_model
from tests.processes import free_port

NEW_TOKENS = 12
# The modules and parameters of vLLM 0.33.0 (vllm/model_executor/models/qwen2_audio.py, qwen2.py), which its loader
# fills by these very names. Biases of keys are made there; gate and up, and query, key and value are joined there.
VLLM = re.compile(
    r"audio_tower\.(conv1|conv2|layer_norm)\.(weight|bias)|audio_tower\.embed_positions\.weight"
    r"|audio_tower\.layers\.\d+\.((self_attn\.(q_proj|v_proj|out_proj)|self_attn_layer_norm|fc1|fc2|final_layer_norm)"
    r"\.(weight|bias)|self_attn\.k_proj\.weight)"
    r"|multi_modal_projector\.linear\.(weight|bias)"
    r"|language_model\.(lm_head|model\.embed_tokens|model\.norm)\.weight"
    r"|language_model\.model\.layers\.\d+\.(self_attn\.([qkv]_proj\.(weight|bias)|o_proj\.weight)"
    r"|mlp\.(gate|up|down)_proj\.weight|(input|post_attention)_layernorm\.weight)"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a random model whose weights are scaled up, so that its answers depend on the clip."""
    encoder = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
               "num_mel_bins": 80}  # fmt: skip
    llm = {"model_type": "qwen2", "vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip
    model, processor = build_model(
        ModelConfig(name="test", encoder=EncoderConfig(config=encoder), llm=LanguageModelConfig(config=llm),
                    tokenizer="builtin:nano"),
        seed=1,
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name:
                weight.mul_(4.0)
    folder = tmp_path_factory.mktemp("run")
    model.save_pretrained(folder / "checkpoint-1")
    processor.tokenizer.save_pretrained(folder / "checkpoint-1")
    return export(folder / "checkpoint-1", folder / "export").path


def noise(seconds: float) -> np.ndarray:
    draw = np.random.default_rng(3)
    return tone(seconds) + (0.05 * draw.standard_normal(int(seconds * 16_000))).astype(np.float32)


def clip(wave: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 16_000, format="WAV")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def stored_names(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as stored:
        return list(stored.keys())


def question(*waves: np.ndarray) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*map(clip, waves), {"type": "text", "text": "What do you hear?"}]}]


def test_weights_have_the_names_that_vllm_loads(exported: Path) -> None:
    names = stored_names(exported)
    assert [name for name in names if not VLLM.fullmatch(name)] == []
    assert len(names) == 3 * 2 + 1 + 2 * 15 + 2 + 3 + 2 * 12
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["Qwen2AudioForConditionalGeneration"]
    assert config["text_config"]["model_type"] == "qwen2"


def test_weights_have_the_names_that_llama_cpp_converts(exported: Path) -> None:
    """By the tables of its own package. Its converter takes one prefix away and adds another before it looks there."""
    gguf = pytest.importorskip("gguf")
    llm = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    # The converter numbers convolutions as layers: in an encoder of two the second convolution would have no name.
    audio = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 3)
    found = {}
    for name in stored_names(exported):
        part, _, rest = name.partition(".")
        table, known = (llm, rest) if part == "language_model" else (audio, name)
        known = f"audio.{name}" if part == "multi_modal_projector" else known
        found[name] = table.get_name(known, try_suffixes=(".weight", ".bias"))
    assert [name for name, there in found.items() if there is None] == []
    assert len(set(found.values())) == len(found)
    assert {"token_embd.weight", "output.weight", "blk.1.attn_q.bias", "a.conv1d.2.bias", "a.position_embd.weight",
            "a.blk.1.ffn_down.weight", "mm.a.fc.weight"} <= set(found.values())  # fmt: skip
    # The sizes that it writes down.
    config = json.loads((exported / "config.json").read_text())
    sizes = {"d_model", "encoder_layers", "encoder_ffn_dim", "encoder_attention_heads", "num_mel_bins"}
    assert sizes <= config["audio_config"].keys()
    assert {"hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads",
            "rms_norm_eps", "rope_parameters"} <= config["text_config"].keys()  # fmt: skip


def test_windows_of_a_clip_are_one_clip_in_the_template_of_an_export(exported: Path) -> None:
    processor = AutoProcessor.from_pretrained(exported)
    stock = type(processor)(processor.feature_extractor, processor.tokenizer).default_chat_template
    content = [{"type": "audio"}, {"type": "audio"}, {"type": "text", "text": "And "}, {"type": "audio"}]
    chat: list[dict[str, Any]] = [{"role": "user", "content": content}, {"role": "assistant", "content": "A bell."},
                                  {"role": "user", "content": content[:2]}]  # fmt: skip

    def text(**settings: Any) -> str:
        return str(processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **settings))

    assert text() == text(windows=False) == text(chat_template=stock)
    one = "Audio {}: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
    both = one.replace("<|AUDIO|>", "<|AUDIO|><|AUDIO|>")
    asked = [part.split("<|im_end|>")[0] for part in text(windows=True).split("<|im_start|>user\n")[1:]]
    assert asked == [both.format(1) + "And " + one.format(2), both.format(3)]


@pytest.fixture(scope="module")
def served(exported: Path) -> Iterator[openai.OpenAI]:
    """A client of `transformers serve`."""
    port = free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", exported, "--device", "cpu",
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = exported.parent / "serve.log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        try:
            until = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < until, log.read_text()
                    time.sleep(0.5)
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
                yield client
        finally:
            process.kill()


@pytest.mark.slow
def test_transformers_serve_hears_45_seconds_as_windows_and_cuts_one_clip(
    served: openai.OpenAI, exported: Path
) -> None:
    wave = noise(45)
    model = str(exported)

    def ask(*waves: np.ndarray, **more: Any) -> tuple[str, int]:
        answer = served.chat.completions.create(
            model=model, messages=question(*waves), max_tokens=NEW_TOKENS, temperature=0, extra_body=more
        )
        assert answer.usage is not None
        return str(answer.choices[0].message.content).strip(), answer.usage.prompt_tokens

    # One part of 45 s is cut in silence: it is answered as its first 30 s.
    cut, tokens = ask(wave)
    assert (cut, tokens) == ask(wave[:480_000])
    # In windows, the prompt and the greedy answer are those of the clip in qa-train.
    heard, whole = ask(wave[:480_000], wave[480_000:], chat_template_kwargs={"windows": True})
    asked = parse(json.dumps({"model": "m", "messages": question(wave)}).encode(), ServeConfig(), {"m": "chat"})
    generator = Generator(*load_model(exported))
    assert whole == len(encode_prompt(asked.sample, generator.tokenizer, [audio_tokens(len(wave))]))
    assert whole - tokens == 375
    answer = generator.generate([Item(asked.sample, asked.waves)], Decoding(max_new_tokens=NEW_TOKENS))[0]
    ids = generator.tokenizer.encode(answer.text, add_special_tokens=False)
    assert heard == generator.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert heard != cut
    # As two clips with a number each, the prompt is another one.
    assert ask(wave[:480_000], wave[480_000:])[1] > whole
    # A stream says the same.
    stream = served.chat.completions.create(
        model=model, messages=question(wave[:480_000], wave[480_000:]), max_tokens=NEW_TOKENS, temperature=0,
        stream=True, extra_body={"chat_template_kwargs": {"windows": True}},
    )  # fmt: skip
    assert "".join(each.choices[0].delta.content or "" for each in stream).strip() == heard
