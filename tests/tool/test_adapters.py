"""Kept adapters: base and adapter are one model everywhere, and are the merged model to the bit; without its base an adapter is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from safework_cli.core.artifacts import Manifest, Store
from safework_cli.core.artifacts.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE, base_of, read_base
from safework_cli.core.artifacts.gc import garbage
from safework_cli.core.artifacts.payload import parameter_count
from safework_cli.core.artifacts.store import now
from safework_cli.core.artifacts.transfer import export_folder, import_folder
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import Inputs
from safework_cli.models.adapters import adapter_of, merged
from safework_cli.models.layers import lora_config
from safework_cli.models.load import load_model, load_tokenizer, save_model
from safework_cli.training.config import Lora

SETTINGS = {"learning_rate": 1e-2, "max_steps": 2, "per_device_train_batch_size": 4, "sample_prompts": 0, "bf16": False}


@pytest.fixture
def committed(store):
    """Makes a run's payload an artifact."""

    def make(output: Path, name: str):
        folder = store.staging()
        shutil.copytree(output, folder, dirs_exist_ok=True)
        manifest = Manifest(
            kind="model", name=name, version=0, created=now(), stage="sft", stage_version=1, fingerprint=name, files=[], digest=""
        )
        return store.commit(folder, manifest)

    return make


@pytest.fixture
def kept(committed, tiny_artifact, tmp_path):
    """An adapter of the tiny model: low-rank changes to every linear layer, as after training."""
    return committed(saved_adapter(tiny_artifact, tmp_path / "adapter"), "kept")


def saved_adapter(base, folder: Path, seed: int = 0) -> Path:
    model, tokenizer = load_model(base.path, dtype="float32"), load_tokenizer(base.path)
    adapted = get_peft_model(model, lora_config(Lora(r=4, alpha=8, keep="adapter"), model))
    torch.manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    adapter = adapter_of(adapted, base)
    folder.mkdir()
    save_model(merged(adapted), tokenizer, folder, adapter=adapter)
    return folder


def logits_of(folder: Path, **options) -> torch.Tensor:
    return logits(load_model(folder, **options), folder)


def logits(model, folder: Path) -> torch.Tensor:
    ids = torch.tensor([load_tokenizer(folder)("What is 3+1? The answer to all.")["input_ids"]])
    with torch.no_grad():
        return model(ids).logits.float().log_softmax(-1)


def test_base_and_adapter_are_the_merged_model(kept, tiny_artifact, cli, store):
    names = {entry.path for entry in kept.manifest.files}
    assert {BASE, ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json", "tokenizer.json"} <= names and "model.safetensors" not in names
    written = read_base(kept.path)
    assert written is not None
    assert (written.ref, written.digest, written.dtype) == ("model/tiny@v1", tiny_artifact.digest, "float32")
    assert written.parameters == parameter_count(kept.path) == parameter_count(tiny_artifact.path)
    done = cli("models", "merge", "kept", "--name", "together")
    assert done.stdout == "model/together@v1\n", done.stderr
    together = store.resolve("together")
    assert read_base(together.path) is None and together.manifest.inputs["model"].ref == kept.ref
    assert (together.path / "config.json").read_bytes() == (kept.path / "config.json").read_bytes()
    held, whole = load_model(kept.path, dtype="float32").state_dict(), load_model(together.path, dtype="float32").state_dict()
    assert held.keys() == whole.keys() and all(torch.equal(held[name], whole[name]) for name in held)
    assert (logits_of(kept.path, dtype="float32") - logits_of(tiny_artifact.path, dtype="float32")).abs().max() > 0.01


def test_peft_itself_gives_the_same_log_probabilities(kept, tiny_artifact):
    """The files are peft's own format: its loader, with the adapter next to the weights and not merged, agrees."""
    model = PeftModel.from_pretrained(load_model(tiny_artifact.path, dtype="float32"), str(kept.path))
    assert (logits(model, kept.path) - logits_of(kept.path, dtype="float32")).abs().max() <= 1e-5


def test_loading_takes_no_random_numbers_and_every_weight_can_be_trained(kept):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    model = load_model(kept.path)
    assert torch.equal(torch.rand(1), expected)
    assert all(weight.requires_grad for weight in model.parameters()) and not model.training


@pytest.mark.parametrize(("stored", "save_dtype"), [("bfloat16", "source"), ("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_run_that_keeps_its_adapter_makes_the_model_of_one_that_merges(
    stored, save_dtype, tiny_model, committed, toy_data, work, tmp_path, store
):
    """To the bit, in every type: the sum is rounded as the merged model is saved."""
    from safework_sft.config import SftConfig
    from safework_sft.run import train

    save_model(load_model(tiny_model, dtype="float32"), load_tokenizer(tiny_model), tmp_path / "base", dtype=getattr(torch, stored))
    base = committed(tmp_path / "base", "base")
    inputs, made = Inputs({"model": base, "data": toy_data.with_subset("cot")}), {}
    for keep in ("merged", "adapter"):
        train(SftConfig(lora={"r": 4, "keep": keep}, save_dtype=save_dtype, **SETTINGS), inputs, work)
        made[keep] = committed(work.output, keep)
        shutil.rmtree(work.output), shutil.rmtree(work.checkpoints)
    assert (made["merged"].path / "config.json").read_bytes() == (made["adapter"].path / "config.json").read_bytes()
    for dtype in ("float32", "bfloat16"):
        whole, held = (load_model(made[keep].path, dtype=dtype).state_dict() for keep in ("merged", "adapter"))
        assert all(torch.equal(whole[name], held[name]) and whole[name].dtype == held[name].dtype for name in whole)
    assert not torch.equal(
        whole["model.layers.0.mlp.up_proj.weight"], load_model(base.path, dtype=dtype).model.layers[0].mlp.up_proj.weight
    )


def test_training_from_an_adapter_trains_the_sum(kept, committed, toy_data, work, tmp_path, cli, store):
    """In full, and by a further adapter, whose base is then the first one."""
    from safework_sft.config import SftConfig
    from safework_sft.run import train

    assert cli("models", "merge", "kept", "--name", "together").returncode == 0
    data, made = toy_data.with_subset("cot"), []
    for start in (kept, store.resolve("together")):
        train(SftConfig(**SETTINGS), Inputs({"model": start, "data": data}), work)
        made.append((work.output / "model.safetensors").read_bytes())
        shutil.rmtree(work.output), shutil.rmtree(work.checkpoints)
    assert made[0] == made[1]
    further = committed(saved_adapter(kept, tmp_path / "further", seed=1), "further")
    base = read_base(further.path)
    assert base is not None and (base.ref, base.digest) == (kept.ref, kept.digest)
    assert parameter_count(further.path) == parameter_count(kept.path)
    assert (logits_of(further.path) - logits_of(kept.path)).abs().max() > 0.01


def test_the_kl_of_a_run_from_an_adapter_compares_with_the_sum(kept, toy_data, work):
    """With the base, it would pull the policy back out of what the adapter has learnt."""
    from safework_rl.m3.config import M3Config
    from safework_rl.m3.stage import stage as m3

    settings = SETTINGS | {"per_device_train_batch_size": 8, "num_generations": 4, "preflight": 0, "max_completion_length": 8, "beta": 0.1}
    settings |= {"rewards": {"safety": {"rule:constraints": 1.0}}, "phases": [{"tasks": ["safety"], "share": 1.0}], "filter_groups": False}
    settings.pop("sample_prompts")
    m3.run(M3Config(**settings), Inputs({"model": kept, "data": toy_data.with_subset("rl")}), work)
    assert abs(read_metrics(work.progress.metrics_path)[0]["kl"]) < 1e-6


def test_a_missing_or_changed_base_is_named(kept, store, cli, toy_data):
    base = store.resolve("tiny")
    hidden = store.root / "hidden"
    base.path.rename(hidden)
    for read in (lambda: store.resolve("kept"), lambda: load_model(kept.path)):
        with pytest.raises(InputError, match=r"model/kept@v1 is an adapter of model/tiny@v1, and that model is not here"):
            read()
    done = cli("sft", "model=kept", "data=dataset/toy:cot", "--dry-run")
    assert done.returncode == 3 and "adapter of model/tiny@v1" in done.stderr
    verified, listed = cli("artifacts", "verify"), cli("artifacts", "ls")
    assert verified.returncode == 3 and "model/kept@v1 is an adapter of model/tiny@v1" in verified.stderr
    assert "model/kept@v1 (adapter of model/tiny@v1, which is missing)" in listed.stdout
    hidden.rename(base.path)
    assert "model/kept@v1 (adapter of model/tiny@v1)" in cli("artifacts", "ls").stdout
    weights = base.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match=r"the base of model/kept@v1 cannot be used: model/tiny@v1 is damaged"):
        store.resolve("kept")


def test_another_version_of_the_base_is_taken_only_with_its_digest(kept, store, tiny_model, tmp_path):
    other = import_folder(store, tiny_model, "other-name")
    base = store.resolve("tiny")
    shutil.rmtree(base.path)
    found = base_of(store, kept)
    assert found is not None and found.ref == other.ref
    changed = load_model(other.path, dtype="float32")
    with torch.no_grad():
        changed.model.norm.weight += 1
    shutil.rmtree(other.path)
    save_model(changed, load_tokenizer(tiny_model), tmp_path / "changed")
    import_folder(store, tmp_path / "changed", "tiny")
    with pytest.raises(InputError, match=r"adapter of model/tiny@v1, and that model is not here"):
        base_of(store, kept)


def test_gc_keeps_the_base_of_what_it_keeps(kept, store, tiny_model, tmp_path):
    changed = load_model(tiny_model, dtype="float32")
    save_model(changed.to(torch.bfloat16), load_tokenizer(tiny_model), tmp_path / "newer")
    import_folder(store, tmp_path / "newer", "tiny")  # v1 is old now, and the adapter needs it
    for with_ancestors in (False, True):
        assert "model/tiny@v1" not in [item.label for item in garbage(store, keep=1, runs_days=7, with_ancestors=with_ancestors)]
    shutil.rmtree(kept.path)
    assert "model/tiny@v1" in [item.label for item in garbage(store, keep=1, runs_days=7, with_ancestors=True)]


def test_an_adapter_is_imported_after_its_base(kept, store, tmp_path, cli):
    exported = cli("artifacts", "export", "kept", str(tmp_path / "kept"))
    assert exported.returncode == 0 and "imported after its base, model/tiny@v1" in exported.stderr
    assert cli("artifacts", "export", "kept", str(tmp_path / "x"), "--check").returncode == 3 and not (tmp_path / "x").exists()
    with pytest.raises(InputError, match=r"holds an adapter of model/tiny@v1, and is not in the store(.|\n)*safework artifacts import"):
        store.resolve(str(tmp_path / "kept"))
    elsewhere = Store(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"adapter of model/tiny@v1, and that model is not here"):
        import_folder(elsewhere, tmp_path / "kept", None)
    export_folder(store.resolve("tiny"), tmp_path / "base")
    import_folder(elsewhere, tmp_path / "base", "another-name")
    brought = import_folder(elsewhere, tmp_path / "kept", None)
    assert torch.equal(logits_of(brought.path), logits_of(kept.path))
    assert next(one.ref for one in elsewhere.lineage(brought).values() if one is not None) == "model/another-name@v1"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / BASE).write_text('{"ref": "model/tiny@v1"}'), r"base.json is damaged"),
        (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), r"no adapter_model.safetensors"),
        (lambda folder: shutil.copy(folder / ADAPTER_WEIGHTS, folder / "model.safetensors"), r"whole model and an adapter"),
    ],
)
def test_a_damaged_adapter_is_not_committed(spoil, message, kept, store, commit):
    folder = store.staging()
    for entry in kept.manifest.files:
        if "/" not in entry.path:
            shutil.copy(kept.path / entry.path, folder / entry.path)
    spoil(folder)
    with pytest.raises(InputError, match=message):
        commit(folder, "model", "spoilt")


def test_an_adapter_that_does_not_fit_is_refused(kept, store, commit):
    folder = store.staging()
    for entry in kept.manifest.files:
        if "/" not in entry.path:
            shutil.copy(kept.path / entry.path, folder / entry.path)
    settings = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings | {"target_modules": ["q_proj"]}))
    with pytest.raises(InputError, match=r"does not fit its base(.|\n)*unexpected"):
        load_model(commit(folder, "model", "other").path)


def test_merging_and_averaging_say_what_they_take(kept, cli):
    whole = cli("models", "merge", "tiny")
    assert whole.returncode == 3 and "model/tiny@v1 is a whole model" in whole.stderr
    mean = cli("models", "average", "tiny", "kept")
    assert mean.returncode == 3 and "model/kept@v1 holds an adapter" in mean.stderr and "safework models merge" in mean.stderr


def test_a_verifier_as_an_adapter_needs_the_base_as_it_is():
    from safework_verifier.train.config import VerifierTrainConfig

    for changed in ({"keep_layers": 1}, {"head": "probe"}):
        with pytest.raises((ConfigError, ValueError), match=r"lora.keep=adapter with"):
            VerifierTrainConfig(lora={"keep": "adapter"}, **changed)
