"""``safework models average``: the mean of weights, tensor by tensor, and the models that have none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from safework_cli.core.artifacts.transfer import import_folder
from safework_cli.core.config import resolve
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.prepare import prepare
from safework_cli.core.runtime import execute
from safework_cli.models import average as module
from safework_cli.models.average import AverageModels, weighted_references
from safework_cli.models.tiny import create_tiny_model
from safework_cli.report.ladder import _depth, ancestors


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    made = []
    for seed in (0, 1, 2):
        made.append(tmp_path_factory.mktemp("models") / f"m{seed}")
        create_tiny_model(made[-1], seed=seed)
    return made


def averaged(store, *words, name=None):
    references, weights = weighted_references(words)
    given = [f"models.{number}={reference}" for number, reference in enumerate(references, 1)]
    resolved = resolve(AverageModels(), (), [*given, f"weights={weights}"], {})
    resolved.name = name
    return execute(prepare(AverageModels(), resolved, store), store, quiet=True)


def changed(source: Path, folder: Path, change, file="model.safetensors") -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def test_every_tensor_is_the_weighted_mean_and_the_model_is_an_artifact(folders, store):
    refs = [import_folder(store, folder, folder.name).ref for folder in folders]
    result = averaged(store, f"{refs[0]}:0.5", f"{refs[1]}:0.2", f"{refs[2]}:0.3", name="soup")
    made = result.artifact
    assert made.ref == "model/soup@v1" and made.kind == "model" and result.exit_code == 0
    mean, sources = load_file(made.path / "model.safetensors"), [load_file(folder / "model.safetensors") for folder in folders]
    assert mean.keys() == sources[0].keys() and "lm_head.weight" not in mean
    for name, tensor in mean.items():
        expected = 0.5 * sources[0][name] + 0.2 * sources[1][name] + 0.3 * sources[2][name]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
    model = AutoModelForCausalLM.from_pretrained(made.path)
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()

    manifest = made.manifest
    assert manifest.stage == "models average" and manifest.config["weights"] == [0.5, 0.2, 0.3] and manifest.chat_template_hash
    assert {slot: entry.ref for slot, entry in manifest.inputs.items()} == {f"models.{i}": ref for i, ref in enumerate(refs, 1)}
    card = ModelCard.load(made.path / "README.md")
    assert card.data.tags == ["safework", "safework-models-average", "merge"] and "No licence could be read" in card.text
    for ref, weight in zip(refs, ("0.5", "0.2", "0.3"), strict=True):
        assert f"| `{ref}` | `{weight}` |" in card.text

    again = averaged(store, f"{refs[0]}:0.5", f"{refs[1]}:0.2", f"{refs[2]}:0.3", name="soup")
    assert again.already and again.artifact.ref == made.ref
    other = averaged(store, f"{refs[0]}:0.5", f"{refs[1]}:0.3", f"{refs[2]}:0.2", name="soup")
    assert not other.already and other.artifact.ref == "model/soup@v2"


def test_the_type_of_the_first_model_is_kept_and_the_sum_is_made_in_float32(folders, store, tmp_path):
    def halve(tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(torch.bfloat16)

    half = [changed(folder, tmp_path / f"half{i}", halve) for i, folder in enumerate(folders[:2])]
    made = averaged(store, f"{half[0]}:0.3", f"{half[1]}:0.7").artifact
    mean, sources = load_file(made.path / "model.safetensors"), [load_file(folder / "model.safetensors") for folder in half]
    for name, tensor in mean.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, (sources[0][name].float() * 0.3 + sources[1][name].float() * 0.7).bfloat16())
    mixed = averaged(store, str(folders[0]), str(half[1])).artifact
    assert {tensor.dtype for tensor in load_file(mixed.path / "model.safetensors").values()} == {torch.float32}
    assert "different types" in mixed.manifest.notes[0]


def test_a_tied_tensor_that_one_file_holds_twice_counts_once(folders, store, tmp_path):
    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    doubled = changed(folders[1], tmp_path / "doubled", add_head)
    made = averaged(store, str(doubled), str(folders[0])).artifact
    assert "lm_head.weight" not in load_file(made.path / "model.safetensors")


def test_shards(folders, store, monkeypatch):
    whole = averaged(store, f"{folders[0]}:0.5", f"{folders[1]}:0.5").artifact
    monkeypatch.setattr(module, "SHARD_SIZE", "100KB")
    made = averaged(store, f"{folders[0]}:0.5", f"{folders[2]}:0.5").artifact
    index = json.loads((made.path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    held = {name: tensor for file in set(index.values()) for name, tensor in load_file(made.path / file).items()}
    assert held.keys() == index.keys() == load_file(whole.path / "model.safetensors").keys()
    third = averaged(store, made.ref, str(folders[1])).artifact  # a sharded model is read as well
    name = "model.norm.weight"
    expected = (held[name] + load_file(folders[1] / "model.safetensors")[name]) / 2
    assert torch.allclose(load_file(third.path / json_file(third, name))[name], expected)
    AutoModelForCausalLM.from_pretrained(made.path)


def json_file(artifact, name: str) -> str:
    return json.loads((artifact.path / "model.safetensors.index.json").read_text())["weight_map"][name]


def other_tokens(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|im_start|>", "<|my_start|>"))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text((folder / name).read_text().replace("<|im_start|>", "<|my_start|>"))


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text().replace("\\n", "\\n\\n"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_tokens, "have different tokens"),
        (other_template, "have different chat templates"),
        (lambda folder: settings(folder, rms_norm_eps=1e-3), "have different architectures"),
    ],
)
def test_models_that_belong_to_different_inputs_are_refused(folders, store, tmp_path, change, message):
    shutil.copytree(folders[1], tmp_path / "other")
    change(tmp_path / "other")
    with pytest.raises(InputError, match=message):
        averaged(store, str(folders[0]), str(tmp_path / "other"))
    assert not store.list("model")


def settings(folder: Path, **values) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


def spoil(name, value):
    def change(tensors):
        if value is None:
            del tensors[name]
        elif isinstance(value, float):
            tensors[name][0] = value
        else:
            tensors[name] = value

    return change


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "model.norm.weight of .* holds NaN"),
        (float("inf"), "model.norm.weight of .* holds NaN or infinite"),
        (torch.ones(3), "different shapes: model.norm.weight"),
        (None, "1 tensors are in only one of .*: model.norm.weight"),
    ],
)
def test_weights_that_have_no_mean_are_refused(folders, store, tmp_path, value, message):
    other = changed(folders[1], tmp_path / "other", spoil("model.norm.weight", value))
    with pytest.raises(InputError, match=message):
        averaged(store, str(folders[0]), str(other))
    assert not store.list("model")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["A:0.5", "B:0.6"], "sum to 1.1, not to 1"),
        (["A:nan", "B:0.6"], "weights.0"),
        (["A:1.5", "B:-0.5"], "weights.0"),
        (["A:0.5", "B"], "m1 has no weight"),
        (["A:half", "B:0.5"], "'half' in .* is not a weight"),
        (["A"], "at least two models"),
        (["A:0.5", "A:0.5"], "are the same model"),
    ],
)
def test_words_that_make_no_average_are_refused(folders, store, words, message):
    named = [word.replace("A", str(folders[0])).replace("B", str(folders[1])) for word in words]
    with pytest.raises(ConfigError, match=message):
        averaged(store, *named)


def test_references_keep_their_own_colons():
    assert weighted_references(["hf:org/name", "hf:org/other"]) == (["hf:org/name", "hf:org/other"], [0.5, 0.5])
    assert weighted_references(["hf:org/name@main:0.25", "mine@v2:0.75"]) == (["hf:org/name@main", "mine@v2"], [0.25, 0.75])


def test_the_command(cli, store, folders):
    refs = [import_folder(store, folder, folder.name).ref for folder in folders[:2]]
    done = cli("models", "average", f"{refs[0]}:0.25", f"{refs[1]}:0.75", "--name", "soup", "--store", str(store.root))
    assert done.returncode == 0 and done.stdout == "model/soup@v1\n" and "models average: done" in done.stderr
    refused = cli("models", "average", f"{refs[0]}:0.25", f"{refs[1]}:0.5", "--store", str(store.root))
    assert refused.returncode == 2 and "sum to 0.75, not to 1" in refused.stderr
    assert "MODEL[:WEIGHT]" in cli("models", "average", "--help").stdout


def test_the_ladder_puts_an_average_after_its_models(folders, store):
    first, second = (import_folder(store, folder, folder.name) for folder in folders[:2])
    soup = averaged(store, first.ref, second.ref, name="soup").artifact
    deeper = averaged(store, soup.ref, str(folders[2]), name="deeper").artifact
    known = {artifact.ref: artifact for artifact in store.list()}
    assert _depth(first.ref, known) == 0 and _depth(soup.ref, known) == 1 and _depth(deeper.ref, known) == 2
    assert {first.ref, second.ref, soup.ref} <= ancestors(deeper.ref, known)
