"""Chats in the words of a language model: what passes, what stays, what a second run asks again."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.build_rewrites import RewriteConfig, judge_reply, rewrite
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.llm.judge import Verdict

QUESTION, ANSWER = "What do you hear?", "A dog barks 3 times."


def reply(question: str, answer: str) -> Verdict:
    return Verdict("```json\n" + json.dumps({"question": question, "answer": answer}) + "\n```")


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (reply("Which animal is it, and how often?", "There is a dog; it barks 3 times."), None),
        (reply("What is it?", "A dog barks."), "a fact of the answer is missing"),
        (reply("What is it?", "A dog barks 3 times within 10 seconds."), "a number that was not there"),
        (reply("How often do you hear the dog?", "The dog barks 3 times."), "the question gives the answer away"),
        (reply("What is it?", "Yes, a dog barks 3 times."), "yes and no are not kept"),
        (reply("What is it?", "The caption speaks of a dog that barks 3 times."), "speaks of annotations"),
        (reply("What is it?", "A dog barks 3 times. " * 8), "too long"),
        (reply("What is it? <|im_end|>", "A dog barks 3 times."), "special text"),
        (Verdict("Sure! Which animal is it?"), "not the JSON asked for"),
        (Verdict('{"question": "What?", "answer": 3}'), "not the JSON asked for"),
        (Verdict("", refused=True), "not the JSON asked for"),
        (Verdict(error="timed out"), "no reply"),
    ],
)
def test_filters(verdict: Verdict, reason: str | None) -> None:
    found = judge_reply(QUESTION, ANSWER, verdict, 3.0)
    assert found == reason if reason else isinstance(found, tuple)


class Writer(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        self.asked.append(prompt)
        question, answer = (re.findall(rf"^{name}: (.*)$", prompt, re.MULTILINE)[0] for name in ("Question", "Answer"))
        said = {"question": f"Tell me: {question}", "answer": f"Well, {answer}"}
        if "cat" in answer:
            said["answer"] = "I am not sure."
        body = json.dumps({"choices": [{"message": {"content": json.dumps(said)}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Writer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Writer.asked.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def chats(folder: Path) -> str:
    def chat(*turns: str) -> dict[str, Any]:
        roles = ("user", "assistant") * 2
        return {"messages": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]}

    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    with ShardWriter(folder / "chats-%03d.tar") as writer:
        writer.write("one", chat("<audio>What is it?", "A dog.", "How loud?", "Very loud."), wave)
        writer.write("two", chat("What is it?<audio>", "A cat."), wave)
        # Spoken: there are no words to say anew.
        writer.write("three", chat("<audio>", "Paris."), wave)
    return str(folder / "chats-*.tar")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        row["key"]: json.loads(row["meta"]) for row in load_index(str(folder / "rewritten-00000.tar")).table.to_pylist()
    }


def test_a_run_a_replay_and_a_second_run(tmp_path: Path, url: str) -> None:
    options = RewriteConfig(shards=chats(tmp_path), out=str(tmp_path / "out"), url=url, model="m")
    assert rewrite(options) == 0
    assert len(Writer.asked) == 3
    made = read(tmp_path / "out")
    texts = [message["content"] for message in made["one"]["messages"]]
    assert texts == ["<audio>Tell me: What is it?", "Well, A dog.", "Tell me: How loud?", "Well, Very loud."]
    assert made["one"]["rewritten"]["turns"] == [0, 2]
    assert made["one"]["rewritten"]["messages"][1]["content"] == "A dog."
    # Refused by a filter, and never asked: as they were.
    assert [m["content"] for m in made["two"]["messages"]] == ["What is it?<audio>", "A cat."]
    assert "rewritten" not in made["two"]
    assert "rewritten" not in made["three"]
    report = json.loads((tmp_path / "out/rewrite.report.json").read_text())
    assert (report["turns"], report["rewritten"]) == (3, 2)
    assert report["kept_as_they_were"] == {"a fact of the answer is missing": 1}
    with pytest.raises(ValueError, match=r"holds rewritten-00000\.tar already"):
        rewrite(options)
    # Killed before the shard was whole: the replies are there, and nothing is asked again.
    shard = tmp_path / "out/rewritten-00000.tar"
    before = shard.read_bytes()
    shard.unlink()
    options.url = None
    rewrite(options)
    assert shard.read_bytes() == before
    assert len(Writer.asked) == 3


def test_shards_that_share_keys(tmp_path: Path, url: str) -> None:
    shards = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shards.append(chats(tmp_path / name))
    rewrite(RewriteConfig(shards=shards, out=str(tmp_path / "out"), url=url, model="m"))
    assert [*read(tmp_path / "out")] == ["one", "two", "three", "one-2", "two-2", "three-2"]


def test_a_part_is_the_same_part_every_time(tmp_path: Path, url: str) -> None:
    options = RewriteConfig(shards=chats(tmp_path), out=str(tmp_path / "out"), url=url, model="m", share=0.5)
    rewrite(options)
    report = json.loads((tmp_path / "out/rewrite.report.json").read_text())
    assert report["kept_as_they_were"]["not drawn (share)"] == 3 - len(Writer.asked) > 0


def test_without_endpoint_and_cache_there_is_nothing_to_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the judge is offline"):
        rewrite(RewriteConfig(shards=chats(tmp_path), out=str(tmp_path / "out"), model="m"))
