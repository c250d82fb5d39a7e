"""The door for stored models: what was changed, does not fit, or brings code is refused in one line, by everybody."""

from __future__ import annotations

import ast
import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qa_train.config import EncoderConfig, LanguageModelConfig, ModelConfig
from qa_train.model import build_model, load_model
from qa_train.model.build import check_checkpoint, load_adapted, load_model_config, load_model_tokenizer
from qa_train.model.lora import read_base
from tests.model.stored import SMALL, write_adapters, write_model

ROOT = Path(__file__).parent.parent.parent
MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("whole") / "checkpoint-2")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapters(tmp_path_factory.mktemp("adapters") / "checkpoint-2")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    def make(source: Path, *, manifest: bool = True) -> Path:
        folder = Path(shutil.copytree(source, tmp_path / "copy"))
        if not manifest:
            (folder / "manifest.json").unlink()
        return folder

    return make


def refused(folder: Path, says: str, **options: Any) -> None:
    """Both the loading and the doctor say so, in one line, and quickly."""
    started = time.process_time()
    for read in (load_model, check_checkpoint):
        with pytest.raises(ValueError, match=says) as caught:
            read(folder, **options)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 1200
    assert time.process_time() - started < 20


def edit(name: str, **changes: Any) -> Change:
    """Change fields of a JSON file; a name with dots leads inside."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for path, value in changes.items():
            *parents, last = path.split(".")
            place = content
            for parent in parents:
                place = place[parent]
            place[last] = value
        (folder / name).write_text(json.dumps(content))

    return change


def flip(name: str, place: float) -> Change:
    """One bit of a file, at a share of its length."""

    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(len(content) * place)] ^= 1
        (folder / name).write_bytes(content)

    return change


def weights(name: str, act: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Write the tensors of a file again, changed."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        act(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return change


def rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


# --- what a manifest finds -------------------------------------------------------------------

CHANGED = [
    ("one bit of the last weight", False, flip(MODEL, 0.9999)),
    ("one bit in the middle", False, flip(MODEL, 0.5)),
    ("one bit of the header", False, flip(MODEL, 0.01)),
    ("a field of the configuration", False, edit("config.json", **{"text_config.rope_theta": 5.0})),
    ("another end of answers", False, edit("generation_config.json", eos_token_id=7)),
    ("the tokenizer", False, flip("tokenizer.json", 0.5)),
    ("the chat template", False, lambda f: (f / "chat_template.jinja").write_text("{{ 'Say yes.' }}")),
    ("the mels", False, edit("processor_config.json", **{"feature_extractor.dither": 1.0})),
    ("a file that was added", False, lambda f: (f / "added_tokens.json").write_text("{}")),
    ("a file that is gone", False, lambda f: (f / "generation_config.json").unlink()),
    ("cut", False, lambda f: (f / MODEL).write_bytes((f / MODEL).read_bytes()[:-4])),
    ("a manifest of nothing", False, lambda f: (f / "manifest.json").write_text('{"files": [], "checksums": 3}')),
    ("a manifest that is none", False, lambda f: (f / "manifest.json").write_text("[" * 9999)),
    ("one bit of an adapter", True, flip(ADAPTER, 0.9)),
    ("the scale of the adapters", True, edit("adapter_config.json", lora_alpha=320)),
    ("the seed of the base", True, edit("base.json", seed=3)),
    ("the base's digest", True, edit("base.json", weights_digest=None)),
]  # fmt: skip


@pytest.mark.parametrize(("adapted", "change"), [c[1:] for c in CHANGED], ids=[c[0] for c in CHANGED])
def test_what_was_changed_since_it_was_saved_is_refused(
    adapted: bool, change: Change, whole: Path, adapters: Path, copy: Callable[..., Path]
) -> None:
    folder = copy(adapters if adapted else whole)
    change(folder)
    refused(folder, f"{folder}: .*(is not what was saved|not in its manifest|is missing|manifest cannot be read)")


def test_files_that_no_model_is_made_of_are_not_compared(
    whole: Path, adapters: Path, copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(whole)
    (folder / "optimizer.pt").write_bytes(b"not read")
    (folder / "notes.txt").write_text("mine")
    load_model(folder)
    edit("config.json", **{"text_config.rms_norm_eps": 1e-5})(folder)
    with pytest.raises(ValueError, match="verify=false if it was changed on purpose"):
        load_model(folder)
    load_model(folder, verify=False)
    with monkeypatch.context() as patch:
        # One process of a machine has read it all.
        patch.setenv("LOCAL_RANK", "1")
        load_model(folder)
    check_checkpoint(adapters)
    model, _ = load_adapted(adapters)
    # The adapters are there, and not what get_peft_model begins with.
    assert any((parameter != 0).any() for name, parameter in model.named_parameters() if "lora_B" in name)


# --- names, shapes and values ----------------------------------------------------------------

HEAD = "language_model.lm_head.weight"
LAYER = "language_model.model.layers.1.mlp.up_proj.weight"
LORA = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight"
UNFIT = [
    ("a missing layer", False, weights(MODEL, lambda t: [t.pop(n) for n in list(t) if "layers.1." in n]),
     r"missing model.language_model.layers.1.*; missing .* and \d+ more"),
    ("a renamed head", False, weights(MODEL, rename(HEAD, "score.weight")), "missing lm_head.weight; unexpected score"),
    ("one more tensor", False, weights(MODEL, lambda t: t.update(extra=torch.ones(2))), "unexpected extra"),
    ("another shape", False, weights(MODEL, lambda t: t.update({LAYER: torch.ones(2, 2)})), r"shape \[2, 2\]"),
    ("a weight that is no number", False, weights(MODEL, lambda t: t[LAYER][3].fill_(float("nan"))), "not finite"),
    ("an infinite weight", False, weights(MODEL, lambda t: t[HEAD][0, :1].fill_(float("inf"))), "not finite.*lm_head"),
    ("no projector", False, weights(MODEL, lambda t: [t.pop(n) for n in list(t) if "proj" in n]), "missing .*proj"),
    ("an adapter that is gone", True, weights(ADAPTER, lambda t: t.pop(LORA)), "missing .*up_proj.lora_A"),
    ("all adapters of the encoder", True,
     weights(ADAPTER, lambda t: [t.pop(n) for n in list(t) if "audio_tower" in n]), r"missing .*audio_tower.* more"),
    ("an adapter of another rank", True, weights(ADAPTER, lambda t: t.update({LORA: torch.ones(8, 32)})), r"\[8, 32\]"),
    ("an adapter that is no number", True, weights(ADAPTER, lambda t: t[LORA].fill_(float("nan"))), "not finite"),
    ("an adapter renamed", True, weights(ADAPTER, rename(LORA, LORA.replace("up_", "side_"))), "missing .*unexpected"),
]  # fmt: skip


@pytest.mark.parametrize(("adapted", "change", "says"), [c[1:] for c in UNFIT], ids=[c[0] for c in UNFIT])
def test_weights_that_do_not_fit_are_never_filled_with_noise(
    adapted: bool, change: Change, says: str, whole: Path, adapters: Path, copy: Callable[..., Path]
) -> None:
    folder = copy(adapters if adapted else whole, manifest=False)
    change(folder)
    with pytest.raises(ValueError, match=says) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    # The doctor reads no values.
    if "not finite" not in says:
        refused(folder, says)


def test_missing_weights_begin_anew_when_they_are_named(
    whole: Path, copy: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy(whole, manifest=False)
    weights(MODEL, lambda t: [t.pop(name) for name in list(t) if "projector" in name])(folder)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 5)
        model, _ = load_model(folder, allow_missing=["model.multi_modal_projector.*"], seed=seed)
        drawn.append(model.model.multi_modal_projector.linear.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert "multi_modal_projector.linear.weight, which are initialized randomly" in caplog.text.replace("\n", " ")
    with pytest.raises(ValueError, match=r"missing model\.multi_modal_projector"):
        load_model(folder, allow_missing=["lm_head.*"])


# --- configurations --------------------------------------------------------------------------

TEXT, AUDIO = "text_config.", "audio_config."
CONFIG = [
    ("a hidden size of 1e9", {TEXT + "hidden_size": 10**9}, "hidden_size"),
    ("a hidden size that is no whole number", {TEXT + "hidden_size": 1e9}, ""),
    ("a hidden size that is another", {TEXT + "hidden_size": 64}, "shape"),
    ("no heads", {TEXT + "num_attention_heads": 0}, "num_attention_heads"),
    ("no heads of keys", {TEXT + "num_key_value_heads": 0}, "num_key_value_heads"),
    ("heads that do not divide", {TEXT + "num_key_value_heads": 3}, "must divide"),
    ("negative layers", {TEXT + "num_hidden_layers": -1}, "num_hidden_layers"),
    ("10^8 layers", {TEXT + "num_hidden_layers": 10**8}, "num_hidden_layers"),
    ("10^8 layers of the encoder", {AUDIO + "encoder_layers": 10**8}, "encoder_layers"),
    ("positions without end", {AUDIO + "max_source_positions": 10**12}, "max_source_positions"),
    ("a vocabulary of 10^12", {TEXT + "vocab_size": 10**12}, "vocab_size"),
    ("a type of numbers that is none", {"dtype": "complexx"}, ""),
    ("a type of numbers that holds no weights", {"dtype": "int8"}, "has dtype .*int8"),
    ("a name for a size", {TEXT + "intermediate_size": "big"}, ""),
    ("true for a size", {TEXT + "intermediate_size": True}, ""),
    ("an activation that is none", {TEXT + "hidden_act": "os.system"}, "describes no model"),
    ("a model that is another", {"model_type": "llama"}, "of type llama; expected qwen2_audio|cannot be read"),
    ("a type that nobody knows", {"model_type": "evil"}, "cannot be read"),
    ("parts that are none", {"text_config": [1]}, ""),
    ("positions that turn nowhere", {TEXT + "rope_parameters": {"rope_type": "evil"}}, "describes no model"),
    ("quantized", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
    ("a kernel of a hub", {TEXT + "_attn_implementation": "someone/kernel"}, "contains code"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), [c[1:] for c in CONFIG], ids=[c[0] for c in CONFIG])
def test_odd_configurations_are_one_line(
    changes: dict[str, Any], says: str, whole: Path, copy: Callable[..., Path]
) -> None:
    folder = copy(whole, manifest=False)
    edit("config.json", **changes)(folder)
    refused(folder, says)
    with pytest.raises(ValueError):
        build_model(ModelConfig(name="x", checkpoint=str(folder)))
    # What only building shows is not seen by those who ask for the configuration alone.
    if "shape" not in says and "describes" not in says:
        with pytest.raises(ValueError):
            load_model_config(ModelConfig(name="x", checkpoint=str(folder)))


INDEX = "model.safetensors.index.json"
FILES = [
    ("an index that names a pickle", {INDEX: '{"weight_map": {"a": "pytorch_model.bin"}}'}, "expected safetensors"),
    ("an index that leads out", {INDEX: '{"weight_map": {"a": "../x.safetensors"}}'}, "expected safetensors"),
    ("an index that is absolute", {INDEX: '{"weight_map": {"a": "/tmp/x.safetensors"}}'}, "expected safetensors"),
    ("an index of nothing", {INDEX: '{"weight_map": {}}'}, "names nothing"),
    ("an index that is none", {INDEX: '{"weight_map": [1]}'}, "not an index of weights"),
    ("an index that is a list", {INDEX: "[]"}, "no JSON object"),
    ("an index of numbers", {INDEX: '{"weight_map": {"a": 3}}'}, "not an index of weights"),
    ("JSON without end", {"config.json": '{"a":' * 99999}, "not readable JSON"),
    ("bytes", {"config.json": b"\xff\xfe\x00"}, "not readable JSON"),
    ("a tokenizer that is none", {"tokenizer.json": "{}"}, "tokenizer .*cannot be read"),
    ("a processor that is none", {"processor_config.json": '{"feature_extractor": 3}'}, "invalid feature extractor"),
    ("a spectrum of 1e9", {"processor_config.json": '{"feature_extractor": {"n_fft": 1000000000}}'}, "n_fft"),
    ("a foreign extractor", {"processor_config.json": '{"feature_extractor": {"feature_extractor_type": "Evil"}}'},
     "names the class 'Evil'"),
    ("a foreign tokenizer", {"tokenizer_config.json": '{"tokenizer_class": "EvilTokenizer"}'}, "EvilTokenizer"),
    ("weights that are none", {MODEL: b"x" * 999}, "not a readable safetensors file"),
    ("weights whose header is all", {MODEL: b"\xff" * 64}, "not a readable safetensors file"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "says"), [c[1:] for c in FILES], ids=[c[0] for c in FILES])
def test_odd_files_are_one_line(
    files: dict[str, str | bytes], says: str, whole: Path, copy: Callable[..., Path]
) -> None:
    folder = copy(whole, manifest=False)
    for name, content in files.items():
        if name == INDEX:
            (folder / MODEL).unlink()
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    refused(folder, says)


# --- code ------------------------------------------------------------------------------------

CODE = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoProcessor": "evil.P",
        "AutoFeatureExtractor": "evil.F", "AutoTokenizer": ["evil.T", "evil.T"]}  # fmt: skip
BRINGS = [
    ("config.json", {"auto_map": CODE, "model_type": "evil"}),
    ("config.json", {"auto_map": CODE}),
    ("config.json", {"text_config.auto_map": CODE}),
    ("tokenizer_config.json", {"auto_map": CODE, "tokenizer_class": "T"}),
    ("processor_config.json", {"auto_map": CODE, "processor_class": "P"}),
    ("processor_config.json", {"feature_extractor.auto_map": CODE, "feature_extractor.feature_extractor_type": "F"}),
    ("generation_config.json", {"auto_map": CODE}),
    ("preprocessor_config.json", {"auto_map": CODE, "feature_extractor_type": "F"}),
]


@pytest.mark.parametrize(("name", "changes"), BRINGS, ids=[f"{name} {list(c)[-1]}" for name, c in BRINGS])
def test_code_of_a_folder_is_refused_and_nobody_is_asked(
    name: str, changes: dict[str, Any], whole: Path, copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(whole, manifest=False)
    if not (folder / name).is_file():
        (folder / name).write_text("{}")
    edit(name, **changes)(folder)
    executed = folder / "executed"
    body = "".join(f"class {each}: pass\n" for each in ("Config", "Model", "P", "F", "T"))
    (folder / "evil.py").write_text(f"open({str(executed)!r}, 'w')\n{body}")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(executed)!r}, 'w')\n")
    # A person who would say yes to anything.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    refused(folder, "contains code, which is never run here")
    source = LanguageModelConfig(str(folder))
    for cfg in (ModelConfig("x", checkpoint=str(folder)), ModelConfig("x", llm=source, encoder=SMALL.encoder),
                ModelConfig("x", encoder=EncoderConfig(str(folder)), llm=SMALL.llm, tokenizer="builtin:nano"),
                ModelConfig("x", encoder=SMALL.encoder, llm=SMALL.llm, tokenizer=str(folder))):  # fmt: skip
        with pytest.raises(ValueError, match="contains code"):
            build_model(cfg)
        if cfg.encoder.source is None:
            with pytest.raises(ValueError, match="contains code"):
                load_model_tokenizer(cfg)
    assert not executed.exists()
    assert "evil" not in sys.modules


def test_code_beside_weights_is_not_looked_at(whole: Path, copy: Callable[..., Path], tmp_path: Path) -> None:
    folder, executed = copy(whole), tmp_path / "executed"
    (folder / "custom_generate").mkdir()
    for name in ("custom_generate/generate.py", "modeling_qwen2_audio.py", "sitecustomize.py"):
        (folder / name).write_text(f"open({str(executed)!r}, 'w')\n")
    for name in ("pytorch_model.bin", "training_args.bin"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch " + str(executed).encode() + b"'\ntR.")
    load_model(folder)
    assert not executed.exists()


# --- adapters --------------------------------------------------------------------------------

ODD = [
    ({"target_modules": "(a+)+$"}, "target_modules"),
    ({"target_modules": r"(?:model\.language_model\.layers\..*\.(?:up_proj))|(.*a){99}"}, "target_modules"),
    ({"target_modules": ["up_proj"]}, "target_modules"),
    ({"target_modules": r"(?:model\.language_model\.layers\..*\.(?:side_proj))"}, "do not fit its base"),
    ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_"),
    ({"layer_replication": [[0, 99999999]]}, "layer_replication"),
    ({"rank_pattern": {"up_proj": 10**9}}, "rank_pattern"),
    ({"r": 10**9}, "r = "),
    ({"r": 0}, "r = "),
    ({"r": "4"}, "r = "),
    ({"lora_alpha": float("nan")}, "lora_alpha"),
    ({"lora_dropout": -1}, "lora_dropout"),
    ({"peft_type": "XLORA"}, "peft_type"),
    ({"use_dora": True}, "use_dora"),
    ({"eva_config": {"rho": 1}}, "eva_config"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), ODD, ids=[f"{next(iter(c))} {i}" for i, (c, _) in enumerate(ODD)])
def test_adapters_that_no_run_writes_are_refused(
    changes: dict[str, Any], says: str, adapters: Path, copy: Callable[..., Path]
) -> None:
    folder = copy(adapters, manifest=False)
    edit("adapter_config.json", **changes)(folder)
    refused(folder, says)


BASES: list[tuple[str, Callable[[Path], dict[str, Any]], str]] = [
    ("themselves", lambda f: {"model.checkpoint": str(f)}, "is again these adapters"),
    ("a folder that is not there", lambda f: {"model.checkpoint": "/nowhere"}, "does not exist"),
    ("a number", lambda f: {"model.checkpoint": 5}, "is damaged"),
    ("layers without end", lambda f: {"model.llm.config": SMALL.llm.config | {"num_hidden_layers": 10**8}}, "num_hid"),
    ("a width without end", lambda f: {"model.encoder.config": {**SMALL.encoder.config, "d_model": 10**9}}, "d_model"),
    ("no model", lambda f: {"model": 3}, "is damaged"),
    ("a field that nobody knows", lambda f: {"model.evil": 3}, "is damaged"),
    ("a seed that is none", lambda f: {"seed": "x"}, "is damaged"),
    ("a digest that is none", lambda f: {"weights_digest": 3}, "is damaged"),
    ("a type of numbers that is none", lambda f: {"model.dtype": "evil"}, "dtype"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), [c[1:] for c in BASES], ids=[c[0] for c in BASES])
def test_adapters_on_a_base_that_is_none_are_one_line(
    changes: Callable[[Path], dict[str, Any]], says: str, adapters: Path, copy: Callable[..., Path]
) -> None:
    folder = copy(adapters, manifest=False)
    edit("base.json", **changes(folder))(folder)
    with pytest.raises(ValueError, match=says) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_adapters_belong_to_one_base(
    whole: Path, adapters: Path, copy: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy(adapters, manifest=False)
    edit("base.json", seed=1)(folder)
    with pytest.raises(ValueError, match="were trained on other weights"):
        load_model(folder)
    edit("base.json", weights_digest=None)(folder)
    load_model(folder)
    assert "has no digest of the base" in caplog.text
    # The base's own manifest is looked at, too, whatever base.json says about that.
    broken = Path(shutil.copytree(whole, folder.parent / "base"))
    flip(MODEL, 0.7)(broken)
    edit("base.json", **{"model.checkpoint": str(broken), "model.verify": False})(folder)
    with pytest.raises(ValueError, match="is not what was saved"):
        load_model(folder)
    assert read_base(folder)[0].checkpoint == str(broken)


# --- the sources of a new model --------------------------------------------------------------


def test_sources_are_read_through_the_same_door(whole: Path, copy: Callable[..., Path]) -> None:
    folder = copy(whole)
    cfg = ModelConfig("x", encoder=EncoderConfig(str(folder)), llm=SMALL.llm, tokenizer="builtin:nano")
    model, _ = build_model(cfg)
    before = load_model(folder)[0].model.audio_tower.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.model.audio_tower.state_dict().items())
    flip(MODEL, 0.9)(folder)
    with pytest.raises(ValueError, match="is not what was saved"):
        build_model(cfg)
    (folder / "manifest.json").unlink()
    weights(MODEL, rename("audio_tower.conv2.weight", "audio_tower.conv3.weight"))(folder)
    with pytest.raises(ValueError, match=r"missing conv2.weight; unexpected audio_tower.conv3"):
        build_model(cfg)


# --- who reads -------------------------------------------------------------------------------

READS = ("from_pretrained", "load_checkpoint_and_dispatch", "load_file", "torch_load", "pipeline")


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """The calls of a file by the last part of their name."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [(node.func, node) for node in found if isinstance(node.func, ast.Attribute | ast.Name)]
    return [(func.attr if isinstance(func, ast.Attribute) else func.id, node) for func, node in named]


def test_nothing_is_read_past_the_door() -> None:
    door = ROOT / "qa_train" / "model" / "stored" / "loading.py"
    for path in sorted((ROOT / "qa_train").rglob("*.py")) + sorted((ROOT / "data_pipelines").rglob("*.py")):
        if path != door:
            past = [node.lineno for name, node in calls(path) if name in READS]
            assert not past, (
                f"{path.relative_to(ROOT)} reads a model in lines {past}: use qa_train/model/stored/loading.py"
            )
    ours = [node for name, node in calls(door) if name == "from_pretrained"]
    assert len(ours) >= 6
    for node in ours:
        given = [word.arg or ast.unparse(word.value) for word in node.keywords]
        assert {"_SAFE", "options"} & set(given), f"line {node.lineno} does not refuse code"
