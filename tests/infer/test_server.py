"""The server as clients meet it: a real process, real HTTP, a small random model."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fake_model import tone

from qa_train.config import EncoderConfig, EvalConfig, LanguageModelConfig, ModelConfig, ServeConfig, parse_options
from qa_train.eval.scores.prediction import read_predictions
from qa_train.eval.suite import evaluate
from qa_train.infer.generate import Decoding, Generator, Item
from qa_train.infer.protocol import ApiError
from qa_train.infer.request import parse
from qa_train.infer.server import open_models
from qa_train.infer.service import PAGE
from qa_train.model import build_model, load_model

ROOT = Path(__file__).parent.parent.parent
NEW_TOKENS = 16


def tiny(folder: Path, seed: int) -> None:
    """A Hugging Face folder of a small random model whose answers depend on what it hears."""
    encoder = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
               "num_mel_bins": 80}  # fmt: skip
    llm = {"model_type": "qwen2", "vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64,
           "max_position_embeddings": 4096}  # fmt: skip
    cfg = ModelConfig(
        name="test",
        encoder=EncoderConfig(config=encoder),
        llm=LanguageModelConfig(config=llm),
        tokenizer="builtin:nano",
    )
    model, processor = build_model(cfg, seed=seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name:
                weight.mul_(4.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    tiny(folder / "first", 1)
    tiny(folder / "second", 2)
    (folder / "clips").mkdir()
    soundfile.write(folder / "clips" / "bird.wav", tone(1.0), 16_000)
    (folder / "clips" / "secret.txt").write_text("not a clip")
    return folder


@pytest.fixture(scope="module")
def server(checkpoints: Path) -> Iterator[str]:
    """The address of a running server."""
    command = [
        sys.executable, "-m", "qa_train", "serve", f"checkpoint=[{checkpoints}/first,{checkpoints}/second]", "port=0",
        f"max_new_tokens={NEW_TOKENS}", "max_duration_s=30", "max_body_mb=2", "max_requests=16",
        "max_requests_per_client=16", f"examples={checkpoints}/clips",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        assert "first, second" in line
        yield found.group()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    finally:
        process.kill()


def wav(seconds: float, seed: int = 0) -> str:
    """A noisy tone as base64 of a WAV file."""
    noise = 0.05 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds) + noise.astype(np.float32), 16_000, format="WAV")
    return base64.b64encode(buffer.getvalue()).decode()


def clip(data: str, kind: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": kind}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def post(server: str, messages: Any, *, raw: bytes | None = None, headers: Any = None, **more: Any) -> Any:
    """(status, JSON), or (status, text) of a stream."""
    body = raw if raw is not None else json.dumps({"model": "first", "messages": messages, **more}).encode()
    request = urllib.request.Request(
        f"{server}/v1/chat/completions", body, {"Content-Type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read().decode()
            return response.status, text if more.get("stream") else json.loads(text)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def get(server: str, path: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(server + path, headers=headers), timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def said(answer: tuple[int, Any]) -> str:
    status, body = answer
    assert status == 200, body
    return str(body["choices"][0]["message"]["content"])


def expected(checkpoint: Path, messages: list[dict[str, Any]]) -> str:
    """What the plain generator says to the same conversation."""
    body = json.dumps({"model": "x", "messages": messages}).encode()
    asked = parse(body, ServeConfig(max_new_tokens=NEW_TOKENS), {"x": "chat"})
    generator = Generator(*load_model(checkpoint))
    answer = generator.generate([Item(asked.sample, asked.waves)], Decoding(max_new_tokens=NEW_TOKENS))[0]
    ids = generator.tokenizer.encode(answer.text, add_special_tokens=False)
    return str(generator.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def test_two_turns_from_two_checkpoints(server: str, checkpoints: Path) -> None:
    messages: list[dict[str, Any]] = [user(clip(wav(1.2)))]
    first = said(post(server, messages))
    assert first == expected(checkpoints / "first", messages)
    messages += [
        {"role": "assistant", "content": first},
        user(clip(wav(0.7, 1)), clip(wav(0.4, 2)), "Which is longer?"),
    ]
    status, body = post(server, messages, max_tokens=NEW_TOKENS)
    assert said((status, body)) == expected(checkpoints / "first", messages) != first
    usage = body["usage"]
    assert usage["prompt_tokens"] > 57
    assert 0 < usage["completion_tokens"] <= NEW_TOKENS
    assert body["choices"][0]["finish_reason"] == ("length" if usage["completion_tokens"] == NEW_TOKENS else "stop")
    other = said(post(server, messages, model="second"))
    assert other == expected(checkpoints / "second", messages)


def test_a_served_model_is_evaluated_like_its_checkpoint(server: str, checkpoints: Path, tmp_path: Path) -> None:
    rows = []
    for i in range(5):
        (tmp_path / f"{i}.wav").write_bytes(base64.b64decode(wav(0.5 + 0.3 * i, i)))
        rows.append({"audio": f"{i}.wav", "prompt": f"What is {'very ' * i}loud?", "gt": "a bell"})
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = f"{{reader: jsonl, path: mine.jsonl, metric: chrf, template: chat, max_new_tokens: {NEW_TOKENS}}}"
    (tmp_path / "mine.yaml").write_text(f"benchmarks: {{mine: {entry}}}")
    found = {}
    for name, who in {
        "served": [f"endpoint={server}/v1", "endpoint_model=first"],
        "local": [f"checkpoint={checkpoints}/first"],
    }.items():
        words = [*who, f"out={tmp_path / name}", f"benchmarks=[{tmp_path}/mine.yaml]", "probe=3"]
        assert evaluate(parse_options(EvalConfig, words, "eval")) == 0
        found[name] = read_predictions(tmp_path / name / "mine" / "predictions.jsonl")
        probe = json.loads((tmp_path / name / "mine" / "run.json").read_text())["probe"]
        assert probe["silence"]["n"] == 3
    tokenizer = Generator(*load_model(checkpoints / "first")).tokenizer

    def spoken(text: str) -> str:
        """A server leaves tags out of what it says."""
        return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True)).strip()

    assert [r["prediction"] for r in found["served"]] == [spoken(r["prediction"]) for r in found["local"]]
    assert [r["truncated"] for r in found["served"]] == [r["truncated"] for r in found["local"]]
    assert len({r["prediction"] for r in found["served"]}) > 2


def test_a_stream_says_the_same_in_pieces(server: str) -> None:
    messages = [user(clip(wav(1.0)), "What is it?")]
    plain = said(post(server, messages))
    status, text = post(server, messages, stream=True, stream_options={"include_usage": True})
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert status == 200
    assert events[-1] == "[DONE]"
    found = [json.loads(event) for event in events[:-1]]
    assert "".join(c["delta"].get("content", "") for each in found for c in each["choices"]) == plain
    assert [c["finish_reason"] for each in found for c in each["choices"]][-1] in ("stop", "length")
    assert found[-1]["usage"]["completion_tokens"] > 0
    assert len(found) > 4


def streamed(answer: tuple[int, str], count: int = 1) -> list[tuple[str, str]]:
    """Text and finish reason of each answer of a stream."""
    assert answer[0] == 200, answer
    found = [json.loads(line.removeprefix("data: ")) for line in answer[1].split("\n\n") if "chat.completion" in line]
    made = []
    for number in range(count):
        mine = [c for each in found for c in each["choices"] if c["index"] == number]
        made.append(("".join(c["delta"].get("content", "") for c in mine), mine[-1]["finish_reason"]))
    return made


def test_a_stop_ends_the_answer_whole_and_streamed(server: str) -> None:
    messages = [user(clip(wav(1.0)), "What is it?")]
    plain = said(post(server, messages))
    middle = plain[len(plain) // 2 : len(plain) // 2 + 3]
    before = plain[: plain.index(middle)].rstrip()
    for stop in (middle, ["never said", middle]):
        status, body = post(server, messages, stop=stop)
        assert said((status, body)) == before
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["completion_tokens"] < NEW_TOKENS
        assert streamed(post(server, messages, stop=stop, stream=True)) == [(before, "stop")]
    assert said(post(server, messages, stop="never said")) == plain


def test_several_answers_are_drawn_and_a_seed_repeats_them(server: str) -> None:
    messages = [user(clip(wav(1.0)), "What is it?")]
    for more in ({}, {"seed": 5}):
        status, body = post(server, messages, temperature=1.0, n=3, **more)
        assert status == 200
        texts = [choice["message"]["content"] for choice in body["choices"]]
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert len(set(texts)) == 3
        assert 3 <= body["usage"]["completion_tokens"] <= 3 * NEW_TOKENS
    again = streamed(post(server, messages, temperature=1.0, n=3, seed=5, stream=True), 3)
    assert [text for text, _ in again] == texts
    assert texts[0] == said(post(server, messages, temperature=1.0, seed=5))
    assert {finish for _, finish in again} <= {"stop", "length"}


def test_a_begun_answer_is_gone_on_with(server: str, checkpoints: Path) -> None:
    begun = [user(clip(wav(1.0)), "What is it?"), {"role": "assistant", "content": "It sounds like"}]
    status, body = post(server, begun)
    assert status == 200
    generator = Generator(*load_model(checkpoints / "first"))
    ids = generator.tokenizer.encode("It sounds like", add_special_tokens=False)
    assert body["usage"]["prompt_tokens"] == post(server, begun[:1])[1]["usage"]["prompt_tokens"] + len(ids)
    # The plain way: the ids of the prompt, then those of the beginning.
    asked = parse(json.dumps({"model": "m", "messages": begun[:1]}).encode(), ServeConfig(), {"m": "chat"})
    batch = generator.batch([Item(asked.sample, asked.waves)])
    whole = torch.cat([batch["input_ids"], torch.tensor([ids])], 1)
    with torch.no_grad():
        output = generator.model.generate(
            **batch | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}, do_sample=False,
            max_new_tokens=NEW_TOKENS, min_new_tokens=1, eos_token_id=generator.stop_ids, pad_token_id=0,
        )  # fmt: skip
    new = [token for token in output[0, whole.shape[1] :].tolist() if token not in generator.stop_ids]
    assert (
        body["choices"][0]["message"]["content"] == generator.tokenizer.decode(new, skip_special_tokens=True).rstrip()
    )


def test_ten_clients_at_once_share_batches(server: str) -> None:
    questions = [[user(clip(wav(0.3 + 0.1 * i, i)), f"Question {i}?")] for i in range(10)]
    alone = [said(post(server, messages)) for messages in questions]
    before = json.loads(get(server, "/health")[1])["batches"]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda messages: said(post(server, messages)), questions))
    after = json.loads(get(server, "/health")[1])
    assert together == alone
    assert len(set(alone)) > 3
    assert after["batches"] - before < 10
    assert after["active"] == 0


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (user(clip(base64.b64encode(b"%PDF-1.4 not audio at all").decode())), "cannot be read"),
        (user(clip(wav(1.0), "docx")), "format 'docx'"),
        (user(clip(wav(31.0))), "longer than"),
        (user(clip("")), "cannot be read"),
        (user(clip(wav(0.001))), "cannot be read"),
        (user(clip("äöü")), "not base64"),
        (user(), "empty"),
        (user({"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}), "'image_url'"),
        ({"role": "tool", "content": "x"}, "role 'tool'"),
    ],
)
def test_what_cannot_be_answered_is_explained(server: str, message: Any, words: str) -> None:
    status, body = post(server, [message])
    assert status == 400
    assert words in body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("message", "template", "words"),
    [
        (user("a" * 120_000, "b" * 80_001), "chat", "200001 characters"),
        (user("half a pair: \ud83d"), "chat", "half a surrogate pair"),
        (user("What is this? <|AUDIO|>"), "base", "holds <|AUDIO|>"),
        (user("What does <|AUDIO|> mean?"), "chat", "holds <|AUDIO|>"),
        (user("<|audio_bos|>"), "base", "input_audio"),
        (user("<|audio_eos|>"), "base", "input_audio"),
    ],
)
def test_texts_that_are_refused_before_they_are_tokenized(message: Any, template: str, words: str) -> None:
    body = json.dumps({"model": "m", "messages": [message]}).encode()
    with pytest.raises(ApiError, match=re.escape(words)) as caught:
        parse(body, ServeConfig(), {"m": template})
    assert caught.value.status == 400


@pytest.mark.parametrize("text", ["What does <|im_end|> mean?", "And <audio> in HTML?", "<|en|>"])
def test_special_text_of_a_chat_user_stays_text(text: str) -> None:
    body = json.dumps({"model": "m", "messages": [user(text)]}).encode()
    (message,) = parse(body, ServeConfig(), {"m": "chat"}).sample.messages
    assert "".join(part.text for part in message.content) == text  # type: ignore[union-attr]
    assert not any(part.trusted for part in message.content)  # type: ignore[union-attr]


def test_developer_is_what_newer_clients_call_system() -> None:
    def messages(role: str, *more: Any) -> Any:
        body = {"model": "m", "messages": [{"role": role, "content": "Be brief."}, user("Hello"), *more]}
        return parse(json.dumps(body).encode(), ServeConfig(), {"m": "chat"}).sample.messages

    assert messages("developer") == messages("system")
    assert [each.unfinished for each in messages("developer", {"role": "assistant", "content": "Hi"})] == [0, 0, 1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"n": 0}, "n is 0; expected a whole number from 1 to 4"),
        ({"n": 5, "temperature": 1}, "n is 5"),
        ({"n": True}, "n is True"),
        ({"n": 2}, "n is 2, and at temperature 0"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "a list of at most 4"),
        ({"stop": ""}, "stop is ''"),
        ({"stop": [""]}, "stop is ['']"),
        ({"stop": 3}, "stop is 3"),
        ({"stop": False}, "stop is False"),
        ({"stop": "x" * 201}, "1 to 200 characters"),
        ({"stop": None, "n": None, "response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, "response_format={'type': 'json_object'} is not supported"),
        ({"tools": [{"type": "function"}]}, "tools=["),
        ({"messages": [user("Hi"), {"role": "assistant", "content": "It is "}]}, "ends in ' '"),
        ({"messages": [user("Hi"), {"role": "assistant", "content": ""}]}, "ends in ''"),
        ({"messages": [{"role": "assistant", "content": "It"}]}, "before the answer is missing"),
        ({"messages": [{"role": "system", "content": "x"}]}, "is from 'system'"),
        ({"messages": [user("Hi"), {"role": "developer", "content": "x"}]}, "a developer message may only come first"),
    ],
)
def test_settings_are_taken_or_refused_by_name(more: dict[str, Any], words: str | None) -> None:
    body = json.dumps({"model": "m", "messages": [user("Hello")], **more}).encode()
    if words is None:
        assert (parse(body, ServeConfig(), {"m": "chat"}).stop, parse(body, ServeConfig(), {"m": "chat"}).n) == ((), 1)
        return
    with pytest.raises(ApiError, match=re.escape(words)) as caught:
        parse(body, ServeConfig(), {"m": "chat"})
    assert caught.value.status == 400


def test_every_part_that_means_sound_is_heard_or_refused() -> None:
    def heard(*parts: Any) -> Any:
        return parse(json.dumps({"model": "m", "messages": [user(*parts)]}).encode(), ServeConfig(), {"m": "chat"})

    data = wav(1.0)
    url = f"data:audio/wav;base64,{data}"
    for part in ({"type": "audio_url", "audio_url": {"url": url}}, {"type": "audio", "audio": url},
                 {"type": "audio", "audio_url": url}, clip(data)):  # fmt: skip
        assert len(heard(part, "What?").waves) == 1
    for part in ({"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/a.wav"}}, {"type": "audio"},
                 {"type": "audio", "audio": "/etc/passwd"}, "<|audio_bos|><|AUDIO|><|audio_eos|>Hi",
                 {"type": "video", "video": "a.mp4"}):  # fmt: skip
        with pytest.raises(ApiError) as caught:
            heard(part, "What?")
        assert caught.value.status == 400


def test_limits_and_wrong_use(server: str) -> None:
    asked = [user("Hello")]
    assert post(server, asked, raw=b"{")[0] == 400
    assert post(server, asked, raw=b"[" * 100_000)[0] == 400
    assert post(server, asked, model="third")[0] == 404
    assert "all answers are the same" in post(server, asked, n=3)[1]["error"]["message"]
    assert "unknown setting" in post(server, asked, temprature=1)[1]["error"]["message"]
    assert "from 1 to 16" in post(server, asked, max_tokens=100)[1]["error"]["message"]
    status, body = post(server, [user("word " * 20_000)])
    assert status == 400
    assert body["error"]["code"] == "context_length_exceeded"
    assert post(server, [user("half a pair: \ud83d")])[0] == 400
    assert post(server, asked, raw=b" " * 2_100_000)[0] == 413
    assert post(server, asked, headers={"Content-Type": "text/plain"})[0] == 415
    assert get(server, "/health", Host="evil.example")[0] == 400
    assert get(server, "/nowhere")[0] == 404
    assert said(post(server, asked, temperature=0.8, seed=5)) == said(post(server, asked, temperature=0.8, seed=5))


def test_more_clients_than_allowed_are_told_to_come_back(server: str) -> None:
    messages = [user(clip(wav(2.0)), "What is it?")]
    with ThreadPoolExecutor(48) as pool:
        found = list(pool.map(lambda _: post(server, messages), range(48)))
    statuses = {status for status, _ in found}
    assert statuses <= {200, 429}
    assert 200 in statuses
    assert len({said(each) for each in found if each[0] == 200}) == 1
    assert json.loads(get(server, "/health")[1])["active"] == 0


def test_page_and_examples(server: str) -> None:
    page = get(server, "/")[1].decode()
    assert "voice chat" in page
    # Every file that the page and its scripts name is served.
    named = re.findall(r'(?:src|href)="(/[^"]+)"', page)
    named += [
        f"/{name}" for script in PAGE.glob("*.js") for name in re.findall(r'from "\./([^"]+)"', script.read_text())
    ]
    assert len(named) >= 7
    assert {path: get(server, path)[0] for path in named} == dict.fromkeys(named, 200)
    known = json.loads(get(server, "/examples")[1])
    assert known == {
        "examples": ["bird.wav"],
        "max_duration_s": 30,
        "max_new_tokens": NEW_TOKENS,
        "templates": {"first": "chat", "second": "chat"},
    }
    assert get(server, "/examples/bird.wav")[1][:4] == b"RIFF"
    for name in ("secret.txt", "..%2ffirst%2fconfig.json", "%2e%2e/first/config.json"):
        assert get(server, f"/examples/{name}")[0] == 404
    names = [model["id"] for model in json.loads(get(server, "/v1/models")[1])["data"]]
    assert names == ["first", "second"]


def test_the_page_may_use_its_own_files_only(server: str) -> None:
    with urllib.request.urlopen(server) as response:
        policy = response.headers["Content-Security-Policy"].split("; ")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert policy == ["default-src 'self'", "media-src 'self' blob:", "base-uri 'none'", "form-action 'none'",
                      "frame-ancestors 'none'"]  # fmt: skip
    own = "".join(path.read_text() for path in PAGE.iterdir() if path.suffix in (".html", ".css", ".js"))
    assert set(re.findall(r"https?://[^/\"\s]+", own)) <= {"http://www.w3.org"}
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", own)


def test_libraries_of_the_page_are_what_was_published() -> None:
    table = re.findall(r"^\| `(\S+)` \| \S+ (\S+) \|.* `(\S+\.LICENSE)` \|.*`([0-9a-f]{64})` \|$",
                       (PAGE / "vendor" / "README.md").read_text(), re.MULTILINE)  # fmt: skip
    assert {name for name, *_ in table} == {path.name for path in (PAGE / "vendor").glob("*.js")}
    for name, version, licence, checksum in table:
        data = (PAGE / "vendor" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == checksum
        assert version.encode() in data[:200]
        assert (PAGE / "vendor" / licence).stat().st_size > 1000


def test_names_of_checkpoints(checkpoints: Path) -> None:
    with pytest.raises(ValueError, match=r"called \['first', 'first'\]"):
        open_models(ServeConfig(checkpoint=[f"{checkpoints}/first"] * 2))
    assert list(open_models(ServeConfig(checkpoint={"mine": f"{checkpoints}/first"}))) == ["mine"]
