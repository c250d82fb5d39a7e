from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from qa_train.cli import main
from qa_train.config import EncoderConfig, LanguageModelConfig, LoraSettings, ModelConfig
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.mel import log_mel
from qa_train.data.audio.waveform import segments
from qa_train.export.hugging_face import export
from qa_train.export.model_card import model_card
from qa_train.model import UnpaddedQwen2AudioForConditionalGeneration, build_model, load_model, weights_digest
from qa_train.model.lora import add_adapters, plan_adapters

AUDIO = {"num_mel_bins": 80, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
TEXT = {"model_type": "qwen2", "vocab_size": 1100, "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}  # fmt: skip
LORA = LoraSettings(parts=["llm"], r=2)
RUN = {
    "stage": "sft",
    "trainer": {"max_steps": 3, "batches_per_step": 1, "learning_rate": 1e-4, "lr_scheduler_type": "constant"},
    "data": {"tokens_per_batch": 100, "sources": {}},
    "run": {"seed": 1},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint-3"
    cfg = ModelConfig(
        name="test",
        encoder=EncoderConfig(config=dict(AUDIO)),
        llm=LanguageModelConfig(config=dict(TEXT)),
        tokenizer="builtin:nano",
    )
    model, processor = build_model(cfg)
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return folder


def test_exported_folder_is_whole_and_stock_transformers_reads_it(checkpoint: Path, tmp_path: Path) -> None:
    result = export(checkpoint, tmp_path / "out")
    names = {path.name for path in result.path.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert names >= {"processor_config.json", "chat_template.jinja", "README.md"}
    assert result.max_difference < 1e-4
    assert not list(tmp_path.glob("*.partial"))
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(result.path)
    assert stock.config.architectures == ["Qwen2AudioForConditionalGeneration"]
    assert weights_digest(stock) == weights_digest(load_model(checkpoint)[0])
    chat = [{"role": "user", "content": [{"type": "audio", "audio_url": "x"}, {"type": "text", "text": "What?"}]}]
    text = AutoProcessor.from_pretrained(result.path).apply_chat_template(chat, add_generation_prompt=True)
    assert "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nWhat?<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's export; only read."""
    return export(checkpoint, tmp_path_factory.mktemp("exported") / "out").path


@pytest.fixture(scope="module")
def base(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as others publish it, with a card."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("base") / "base")
    front = "---\nlicense: apache-2.0\nlanguage: [en, zh]\ndatasets: {evil: 1}\nbase_model: Qwen/Qwen2-Audio-7B\n---\n"
    (folder / "README.md").write_text(front)
    return folder


def adapters_on(start: ModelConfig | Path, folder: Path) -> Path:
    """A run's checkpoint of adapters that change the answers, on a model or a folder."""
    cfg = start
    if isinstance(cfg, Path):
        cfg = ModelConfig(name="t", checkpoint=str(cfg), freeze=["encoder", "projector"], lora=LORA)
    model, processor = build_model(cfg)
    adapters = plan_adapters(model, cfg, seed=0)
    assert adapters is not None
    adapted = add_adapters(model, adapters)
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05)
    adapted.save_pretrained(folder)
    adapters.write_base(folder)
    processor.tokenizer.save_pretrained(folder)
    return folder


def status(words: list[str]) -> Any:
    with pytest.raises(SystemExit) as done:
        main(words)
    return done.value.code


def test_adapters_alone_answer_the_same_on_the_stock_base(base: Path, tmp_path: Path) -> None:
    run = adapters_on(base, tmp_path / "run")
    facts = {"base_model": "Qwen/Qwen2-Audio-7B-Instruct"}
    done = export(run, tmp_path / "out", merge=False, facts=facts)
    assert done.max_difference < 1e-4
    assert {path.name for path in done.path.iterdir()} >= {"adapter_model.safetensors", "tokenizer.json", "README.md"}
    assert not list(done.path.glob("model*"))
    assert json.loads((done.path / "adapter_config.json").read_text())["base_model_name_or_path"] == facts["base_model"]
    card = (done.path / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft"
    assert front["base_model"] == facts["base_model"]
    assert 'PeftModel.from_pretrained(base, "FOLDER")' in card
    assert 'from_pretrained("Qwen/Qwen2-Audio-7B-Instruct")' in card
    merged = export(run, tmp_path / "merged")
    assert merged.parameters > 10 * done.parameters
    # Without its name the base is a folder of this machine: the card does not name it.
    card = (export(run, tmp_path / "unnamed", merge=False).path / "README.md").read_text()
    assert 'from_pretrained("BASE")' in card
    assert "base_model" not in card
    assert str(base) not in card


def test_adapters_of_a_run_in_half_precision_are_compared_in_it(base: Path, tmp_path: Path) -> None:
    # The base is stored in float32.
    start = ModelConfig(name="t", checkpoint=str(base), freeze=["encoder", "projector"], lora=LORA, dtype="bfloat16")
    done = export(adapters_on(start, tmp_path / "run"), tmp_path / "out", merge=False)
    assert done.max_difference < 3e-2


def test_a_path_of_this_machine_is_not_published(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = adapters_on(base, tmp_path / "run")
    assert status(["export", f"checkpoint={run}", f"out={tmp_path / 'out'}", "merge=false", "push=owner/name"])
    assert "give its hub id, base_model=owner/name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adapters_alone_are_refused_where_no_other_tool_could_use_them(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a whole model and no adapters"):
        export(checkpoint, tmp_path / "out", merge=False)
    made = ModelConfig(
        name="t", encoder=EncoderConfig(config=AUDIO), llm=LanguageModelConfig(config=TEXT), tokenizer="builtin:nano",
        freeze=["encoder", "projector"], lora=LORA,
    )  # fmt: skip
    with pytest.raises(ValueError, match="assembled when it is loaded"):
        export(adapters_on(made, tmp_path / "run"), tmp_path / "out", merge=False)


def test_the_card_has_what_the_card_of_the_base_says(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(RUN | {"model": {"checkpoint": str(base)}}))
    front = yaml.safe_load(model_card(run, name="x", parameters=1, facts={"language": ["de"]}).split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["de"]
    # Its own base is not that of what was made of it; data sets are names.
    assert not {"base_model", "datasets"} & front.keys()
    (run / "config.yaml").write_text(yaml.safe_dump(RUN | {"model": {"checkpoint": "owner/name"}}))
    assert "base_model: owner/name" in model_card(run, name="x", parameters=1)


def test_an_export_is_uploaded_in_one_commit(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(HfApi, name, lambda self, *args, _name=name, **kwargs: asked.append((_name, kwargs)))
    words = ["export", f"checkpoint={checkpoint}", "push=owner/name"]
    assert status([*words, f"out={tmp_path / 'a'}", "dry_run=true"]) in (0, None)
    assert re.search(r"model.safetensors +\d+\.\d+ MiB", capsys.readouterr().out)
    assert not asked
    assert status([*words, f"out={tmp_path / 'b'}"]) in (0, None)
    assert [name for name, _ in asked] == ["create_repo", "upload_folder"]
    assert asked[0][1] == {"private": True, "exist_ok": True}
    assert asked[1][1]["folder_path"] == tmp_path / "b"
    assert "uploaded to owner/name" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [(["push=name"], "owner/name"), (["push=own er/name"], "own er/name"), (["dry_run=true"], "give push too")],
)
def test_wrong_uploads_are_refused_first(
    words: list[str], said: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(["export", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", *words])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_hub_that_refuses_leaves_the_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_connection(*_: Any, **__: Any) -> None:
        raise HfHubHTTPError.__mro__[1]("no connection")

    # The base of the library's errors is what its HTTP client raises without an answer.
    monkeypatch.setattr(HfApi, "create_repo", no_connection)
    assert status(["export", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", "push=owner/name"])
    said = capsys.readouterr().err
    assert "is complete, but the hub refused it" in said
    assert "hf upload owner/name" in said
    assert (tmp_path / "out" / "model.safetensors").exists()


# One window, not full and full; two, the second too short to stand alone; three.
@pytest.mark.parametrize("samples", [16_000, 480_000, 480_050, 1_000_000])
def test_the_code_on_the_card_hears_a_long_clip_as_training_does(
    exported: Path, checkpoint: Path, samples: int
) -> None:
    """Run as it stands on the card, with the stock classes; the same logits as our model of our front end."""
    code = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("FOLDER", str(exported)).replace("max_new_tokens=128", "max_new_tokens=2")
    wave = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    names: dict[str, Any] = {"wave": wave}
    exec(code, names)
    ids = names["inputs"]["input_ids"]
    assert int((ids == names["model"].config.audio_token_id).sum()) == FRONT_END.tokens(samples)
    assert (ids == names["processor"].tokenizer.convert_tokens_to_ids("<|audio_bos|>")).sum() == 1
    with torch.no_grad():
        stock = names["model"](**names["inputs"]).logits
        model, _ = load_model(checkpoint)
        parts = segments(wave)
        lengths = torch.tensor([FRONT_END.frames(len(part)) for part in parts])
        mels = torch.cat([log_mel(part, 80) for part in parts], 1)
        ours = model(input_ids=ids, input_features=mels, feature_lengths=lengths).logits
    assert (stock - ours).abs().max() < 1e-4 * stock.abs().max()


def test_a_place_that_is_taken_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ValueError, match="not an empty folder"):
        export(checkpoint, tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


def test_an_export_that_answers_otherwise_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = UnpaddedQwen2AudioForConditionalGeneration.save_pretrained

    def spoil(model: UnpaddedQwen2AudioForConditionalGeneration, folder: Path) -> None:
        with torch.no_grad():
            model.lm_head.weight[5] += 1
        save(model, folder)

    monkeypatch.setattr(UnpaddedQwen2AudioForConditionalGeneration, "save_pretrained", spoil)
    with pytest.raises(RuntimeError, match="computes different logits"):
        export(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_card_tells_every_stage_and_no_folder_of_the_machine(checkpoint: Path, tmp_path: Path) -> None:
    def run(stage: str, before: str | None) -> Path:
        folder = tmp_path / stage / "checkpoints" / "checkpoint-7"
        folder.mkdir(parents=True)
        source = {"shards": [f"{tmp_path}/a-*.tar"], "task": "asr", "template": "base", "weight": 2.0}
        config = {
            "stage": stage,
            "run": {"seed": 3},
            "model": {
                "checkpoint": before,
                "encoder": {"source": "whisper"},
                "llm": {"source": None},
                "freeze": ["llm"],
            },
            "trainer": {"batches_per_step": 2, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "max_steps": 9},
            "data": {"tokens_per_batch": 100, "sources": {"speech": source}},
        }
        (folder.parent.parent / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    run("pretrain", None)
    last = run("sft", str(tmp_path / "pretrain"))
    results = tmp_path / "results.json"
    metric = {"name": "WER", "unit": "%", "higher_is_better": False, "n": 5, "values": {"sft": 12.5}}
    results.write_text(json.dumps({"title": "t", "metrics": [metric]}))
    card = model_card(last, name="mine", parameters=1_000_000, results=results)
    assert card.index("### pretrain") < card.index("### sft")
    assert "encoder: whisper; llm: random weights" in card
    assert "7 steps of 2 x 100 tokens, learning rate 0.001 (cosine), seed 3" in card
    assert "| speech | asr | base | 2 | `a-*.tar` |" in card
    assert "12.5" in card
    assert str(tmp_path) not in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    assert "nothing is known" in model_card(checkpoint, name="mine", parameters=1)
    with pytest.raises(ValueError, match="holds no results"):
        model_card(last, name="mine", parameters=1, results=tmp_path / "none.json")


@pytest.mark.parametrize(
    "evil",
    ["a|b", "<img src=x onerror=alert(1)>", "![x](http://tracker/x.png)", "[click](http://evil)", "`rm -rf`", "*bold*",
     "a\n# Heading", "~~gone~~", "_em_", "&lt;b&gt;", "[ref]: http://evil"],
)  # fmt: skip
def test_names_of_others_are_no_markup_on_the_card(tmp_path: Path, evil: str) -> None:
    run = tmp_path / "run"
    (run / "checkpoint-1").mkdir(parents=True)
    source = {"task": evil, "template": evil, "weight": 1, "shards": [f"https://h/{evil.replace('/', '')}.tar?sig=pw2"]}
    config = {
        "stage": evil, "run": {"seed": "${oc.env:SEED}"}, "data": {"tokens_per_batch": 3, "sources": {evil: source}},
        "model": {"checkpoint": None, "freeze": [evil], "encoder": {"source": evil}, "llm": {"source": evil},
                  "lora": {"parts": [evil], "r": 4}},
        "trainer": {"batches_per_step": 1, "max_steps": 1, "learning_rate": "${oc.env:LR}", "lr_scheduler_type": evil},
    }  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    start = {"versions": {"torch": "2" + evil}, "world_size": 1, "git_commit": evil}
    (run / "environment.json").write_text(json.dumps([start]))
    row = {"step": 1, "evaluation": {evil: {"metric": evil, "ci_low": 1, "ci_high": 2, "n": 3}}, f"eval/{evil}": evil}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    card = model_card(run / "checkpoint-1", name=evil, parameters=1)
    body = card.split("---", 2)[2].split("## Use")[0] + card.split("## Training")[1]
    spans = re.compile(r"`[^`\n]*`")
    for line in spans.sub("", body).splitlines():
        assert "<img" not in line
        assert "](http" not in line.replace("https://arxiv.org", "arxiv").replace("](arxiv", "")
        assert not re.search(r"(?<!\\)`|(?<!\\)\*|(?<!\\)~|\]:|&lt;b|^# Heading", line), line
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) == 6, line
    assert "pw2" not in card
    assert "learning rate ${oc.env:LR}" in card


def test_an_evaluation_of_these_weights_is_on_the_card(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = run / "checkpoints" / "checkpoint-4"
    shutil.copytree(checkpoint, folder)
    data = {"tokens_per_batch": 1, "sources": {}}
    trainer = {"batches_per_step": 1, "learning_rate": 1.0, "lr_scheduler_type": "linear", "max_steps": 4}
    config = {"stage": "sft", "run": {"seed": 0}, "model": {"encoder": {}, "llm": {}}, "trainer": trainer, "data": data}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    scores = {"metric": "wer", "ci_low": 7.0, "ci_high": 9.0, "n": 20}
    rows = [{"step": step, "eval/dev": 8.0 + step, "evaluation": {"dev": scores}} for step in (2, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, _ = load_model(folder)
    benchmark = {"title": "My calls", "metric": "wer", "rule": "", "comparable": "", "numbers": {"hf": 6.0},
                 "group_numbers": {}}  # fmt: skip
    result = {"benchmark": benchmark, "value": 12.34, "ci_low": 11.0, "ci_high": 13.5, "n": 50}
    for name, digest in (("mine", weights_digest(model)), ("other", "0" * 64)):
        (tmp_path / name).mkdir()
        part = {"items_differ": True, "items_expected": 2620, "failed": 3}
        found = {
            "calls": result | {"identity": {"weights": digest}},
            "part": result | part | {"identity": {"weights": digest}},
        }
        (tmp_path / name / "results.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="are of other weights"):
        export(folder, tmp_path / "refused", results=tmp_path / "other")
    assert not (tmp_path / "refused").exists()
    done = export(folder, tmp_path / "exported", results=tmp_path / "mine")
    card = (done.path / "README.md").read_text()
    assert "| My calls | wer | 12.34 [11.00, 13.50] | 6.00 |" in card
    assert "held out, dev: wer 12.0 (7.0 to 9.0, n = 20)" in card
    assert "10.0" not in card
    (entry,) = yaml.safe_load(card.split("---")[1])["model-index"]
    assert entry["results"].pop()["dataset"]["name"] == "My calls (50 items of 2620, 3 unanswered)"
    assert entry["results"][0]["metrics"] == [{"type": "wer", "value": 12.34}]
    assert entry["results"][0]["dataset"] == {"name": "My calls", "type": "calls"}


@pytest.mark.parametrize(
    "config",
    ["", "[1]", "3", "{", "a: [", "model: 3", "model: {checkpoint: null}", "stage: x\nmodel: {}\ntrainer: []",
     "trainer: {max_steps: 2}", "!!python/object/apply:os.system ['true']", "\x00"],
)  # fmt: skip
def test_a_strangers_settings_are_refused_in_one_line(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="that no run of qa-train writes") as caught:
        model_card(tmp_path / "checkpoint-2", name="x", parameters=1)
    assert "\n" not in str(caught.value)
