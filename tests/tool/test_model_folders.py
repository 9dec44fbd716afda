"""Model folders of other origin: what does not fit is refused by name, and nothing is a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from safework_cli.core.artifacts.external import path_artifact
from safework_cli.core.errors import ConfigError, InputError, SafeworkError
from safework_cli.models.folder import read_config
from safework_cli.models.load import load_model, load_tokenizer, save_model
from safework_cli.models.processors import load_processor

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "m")
    return tmp_path / "m"


def edit_tensors(folder, change):
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def edit_json(folder, name, **changes):
    file = folder / name
    said = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in said.items() if value is not ...}))


def without(*names):
    return lambda folder: edit_tensors(folder, lambda held: {k: v for k, v in held.items() if not k.startswith(names)})


def config(**changes):
    return lambda folder: edit_json(folder, "config.json", **changes)


def set_in(name, value):
    def change(held):
        held[name].view(-1)[3] = value
        return held

    return lambda folder: edit_tensors(folder, change)


def sharded(folder):
    """Rewrites the folder in three shards."""
    load_model(folder, dtype="float32").save_pretrained(folder, max_shard_size="150KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def half_of_the_shards(folder):
    sharded(folder)
    for file in sorted(folder.glob("model-*.safetensors"))[::2]:
        file.unlink()


def shards_without_index(folder):
    sharded(folder)
    (folder / "model.safetensors.index.json").unlink()


def index_of_nothing(folder):
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def a_folder_named(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


WEIGHTS = [
    (without(DOWN), "1 missing: model.layers.1.mlp.down_proj.weight"),
    (without("model.layers.0"), r"9 missing: model.layers.0.input_layernorm.weight, .* and 5 more"),
    (config(tie_word_embeddings=False), "1 missing: lm_head.weight"),
    (without("model.embed_tokens"), "embed_tokens"),
    (lambda f: edit_tensors(f, lambda held: {f"module.{k}": v for k, v in held.items()}), "20 unexpected: module.model.embed_tokens"),
    (lambda f: edit_tensors(f, lambda held: {"x": torch.ones(2)}), "1 unexpected: x"),
    (lambda f: edit_tensors(f, lambda held: held | {"model.extra.weight": torch.ones(2)}), "1 unexpected: model.extra.weight"),
    (config(num_hidden_layers=1), "9 unexpected: model.layers.1"),
    (config(num_hidden_layers=3), "9 missing: model.layers.2"),
    (config(vocab_size=300), r"of another shape: .*embed_tokens.weight \(259×64 in the file, 300×64 wanted\)"),
    (lambda f: edit_tensors(f, lambda held: held | {DOWN: held[DOWN][:, :5]}), "1 of another shape: model.layers.1.mlp.down_proj"),
    (set_in(DOWN, float("nan")), f"NaN or infinite numbers: {DOWN}"),
    (set_in("model.norm.weight", float("-inf")), "NaN or infinite numbers: model.norm.weight"),
    (half_of_the_shards, r"has no model-00001-of-0000\d.safetensors and \d more"),
    (shards_without_index, "no causal language model can be loaded"),
    (index_of_nothing, "index.json is damaged"),
    (cut, "is truncated"),
    (write("model.safetensors", b""), "is truncated"),
    (write("model.safetensors", struct.pack("<Q", 5) + b"{1,2}"), "not a safetensors file"),
    (write("model.safetensors", struct.pack("<Q", 10) + b'{"x": {}} '), "not a safetensors file"),
    (pickled, "no safetensors weights"),
]


@pytest.mark.parametrize(("spoil", "message"), WEIGHTS)
def test_weights_that_do_not_fit_are_refused_by_name(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        load_model(folder, dtype="float32")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write("config.json", b"{"), "config.json is not JSON"),
        (write("config.json", b"\xff\xfe"), "config.json is not JSON"),
        (write("config.json", b"[" * 100_000), "config.json is not JSON"),
        (write("config.json", b"[1]"), "is not a JSON object"),
        (a_folder_named("config.json"), "config.json cannot be read"),
        (a_folder_named("model.safetensors"), "model.safetensors cannot be read"),
        (lambda folder: edit_json(folder, "generation_config.json", eos_token_id=[2, -1]), "eos_token_id in .*generation_config.json"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (config(model_type=...), "names no model_type"),
        (config(model_type="nothing_like_it"), "model_type is 'nothing_like_it'"),
        (config(model_type=["llama"]), r"model_type is \['llama'\]"),
        (config(model_type="bert"), "do not fit its config.json"),
        (config(hidden_size="wide"), "cannot be used|no causal language model"),
        (config(attention_dropout=1.5), "attention_dropout in .*config.json is 1.5"),
        (config(num_attention_heads=0), "cannot be used|no causal language model"),
        (config(num_hidden_layers=-1), "cannot be used|no causal language model|do not fit"),
        (config(rope_parameters={"rope_type": "none such"}), "cannot be used|no causal language model"),
        (config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), "needs Python code of its own"),
        (write("generation_config.json", b"{"), "generation_config.json is not JSON"),
        (
            lambda folder: edit_json(folder, "generation_config.json", eos_token_id="</s>"),  # noqa: S106
            "eos_token_id in .*generation_config.json",
        ),
        (config(quantization_config={"quant_method": "gptq", "bits": 4}), "no causal language model|are quantised"),
    ],
)
def test_a_damaged_folder_is_refused_and_not_a_traceback(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        load_model(folder, dtype="float32")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write("tokenizer.json", b"{}"), "no tokenizer can be loaded"),
        (write("tokenizer.json", b"\x00"), "no tokenizer can be loaded"),
        (write("tokenizer_config.json", b"{"), "no tokenizer can be loaded"),
        (lambda folder: edit_json(folder, "tokenizer_config.json", model_max_length="x"), "model_max_length in .*tokenizer_config.json"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (config(vocab_size=200), "has tokens that the model has no embedding for"),
        (config(vocab_size=258), "its last token is 258, and the model has 258 embeddings"),
    ],
)
def test_a_tokenizer_that_is_damaged_or_does_not_fit_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)


def test_a_damaged_configuration_is_named_wherever_it_is_read(folder):
    write("config.json", b"{")(folder)
    for read in (read_config, load_processor, load_tokenizer, load_model):
        with pytest.raises(InputError, match="config.json is not JSON"):
            read(folder)


def test_an_adapter_is_named_for_what_it_is(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    adapter = tmp_path / "adapter"
    get_peft_model(load_model(folder, dtype="float32"), LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    edit_json(adapter, "adapter_config.json", base_model_name_or_path="org/base")
    for read in (load_model, load_tokenizer, lambda f: path_artifact(f, "./adapter", ("model",))):
        with pytest.raises(InputError, match=r"holds an adapter, not a whole model(.|\n)*'org/base'(.|\n)*merge_and_unload"):
            read(adapter)
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, folder)
    for read in (load_model, lambda f: path_artifact(f, "./m", ("model",))):
        with pytest.raises(InputError, match="a whole model and an adapter"):
            read(folder)


def test_code_of_a_folder_never_runs_unasked(folder):
    """Neither a model's, a tokenizer's nor a configuration's, whether transformers knows the architecture or not."""
    trap = folder / "trap.py"
    trap.write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n")
    code = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model", "AutoTokenizer": ["trap.Tokenizer", None]}
    edit_json(folder, "config.json", auto_map=code)
    edit_json(folder, "tokenizer_config.json", auto_map=code)
    load_model(folder), load_tokenizer(folder), load_processor(folder)  # a known architecture needs no such code
    edit_json(folder, "config.json", model_type="mine")
    for read in (load_model, load_tokenizer, load_processor):
        with pytest.raises(InputError, match=r"trust_remote_code=true"):
            read(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, {}),
        ({"temperature": 0.9, "top_k": 3, "min_p": 0.1}, {}),
        ({"do_sample": True, "temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"num_return_sequences": 4}, {}),
        ({"early_stopping": "sometimes"}, {}),
        ({"max_new_tokens": -1, "temperature": 0.5}, {}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ],
)
def test_an_invalid_generation_config_is_repaired_when_loading(folder, tmp_path, settings, kept):
    edit_json(folder, "generation_config.json", **settings)
    with pytest.warns(UserWarning, match="invalid and was repaired") if not kept else contextlib.nullcontext():
        model = load_model(folder, dtype="float32")
    save_model(model, load_tokenizer(folder), tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["eos_token_id"] is not None and {k: saved.get(k) for k in kept} == kept
    assert {k for k in settings if saved.get(k) is not None} <= kept.keys() | {"do_sample"}


def test_settings_of_generation_in_config_json_do_not_end_the_save(folder, tmp_path):
    edit_json(folder, "config.json", temperature=0.9, repetition_penalty=1.2, max_length=20)
    model = load_model(folder, dtype="float32")
    save_model(model, load_tokenizer(folder), tmp_path / "saved")
    assert "temperature" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_a_model_that_is_not_whole_or_not_finite_is_not_saved(folder, tmp_path, monkeypatch):
    model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
    whole = type(model).save_pretrained

    def loses_one(self, target, **more):
        whole(self, target, state_dict={k: v for k, v in self.state_dict().items() if k != DOWN}, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "save_pretrained", loses_one)
        with pytest.raises(SafeworkError, match="was not saved completely"):
            save_model(model, tokenizer, tmp_path / "lossy")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(SafeworkError, match=r"model.norm.weight"):
        save_model(model, tokenizer, tmp_path / "nan")


def test_an_empty_model_reads_no_weights_and_is_otherwise_the_same(folder):
    whole = load_model(folder, dtype="float32")
    set_in(DOWN, float("nan"))(folder)
    with pytest.raises(InputError, match="NaN"):
        load_model(folder, dtype="float32", place="host")
    empty = load_model(folder, dtype="float32", place="empty")
    shapes = [{name: (w.shape, w.dtype, w.device) for name, w in model.state_dict().items()} for model in (whole, empty)]
    assert shapes[0] == shapes[1] and type(empty) is type(whole) and not empty.training
    tied = [model.get_output_embeddings().weight is model.get_input_embeddings().weight for model in (whole, empty)]
    assert tied[0] == tied[1]
    for (name, one), (_, other) in zip(whole.named_buffers(), empty.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    assert empty.generation_config.eos_token_id == whole.generation_config.eos_token_id


def test_attention_is_implemented_as_asked(folder):
    assert load_model(folder).config._attn_implementation == "sdpa"
    assert load_model(folder, attn_implementation="eager").config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match="attn_implementation=flash_attention_2 cannot be used"):
        load_model(folder, attn_implementation="flash_attention_2")
