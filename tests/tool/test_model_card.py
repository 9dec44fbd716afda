"""The card in a trained model's folder: lineage, licence, the same bytes each time, and nothing that text from outside can do to it."""

from __future__ import annotations

import html
import json
import shutil

import pytest
from huggingface_hub import CardData, ModelCard
from transformers import AutoModelForCausalLM

from safework_cli.core.artifacts import Artifact
from safework_cli.core.artifacts.external import external_manifest
from safework_cli.core.artifacts.transfer import export_folder, import_folder
from safework_cli.core.artifacts.verify import verify
from safework_cli.core.config import resolve
from safework_cli.core.prepare import prepare
from safework_cli.core.runtime import execute
from safework_cli.core.stage import Inputs
from safework_cli.models import card
from safework_cli.models.card import write_model_card
from safework_sft.config import SftConfig
from safework_sft.stage import stage

WORDS = ["model=tiny", "data=toy:cot", "max_steps=2", "sample_prompts=0", "save_steps=1"]


def run(store, *words):
    return execute(prepare(stage, resolve(stage, (), [*WORDS, *words], {}), store), store, quiet=True).artifact


def test_a_trained_model_has_a_card_with_its_lineage(tiny_artifact, toy_data, store, tmp_path):
    made = run(store)
    card = ModelCard.load(made.path / "README.md")
    assert card.data.library_name == "transformers" and card.data.tags == ["safework", "safework-sft"]
    assert card.data.datasets is None and "dataset/toy@v1:cot" not in card.content.split("---")[1]  # no id of the hub
    for part in ("model/tiny@v1", tiny_artifact.digest, "dataset/toy@v1:cot", toy_data.with_subset("cot").digest, "| `max_steps` | `2` |"):
        assert part in card.text
    assert "save_steps" not in card.text and "No licence could be read" in card.text and str(tmp_path) not in card.content
    assert "README.md" in {entry.path for entry in made.manifest.files}
    verify(made, None)
    AutoModelForCausalLM.from_pretrained(made.path)

    text = (made.path / "README.md").read_bytes()
    export_folder(made, tmp_path / "exported")
    assert import_folder(store, tmp_path / "exported", "imported").digest == made.digest
    store.remove(made)
    again = run(store, "save_steps=2")
    assert (again.path / "README.md").read_bytes() == text and again.digest == made.digest


def written(folder, source, toy_data, **more) -> ModelCard:
    shutil.copy(source / "config.json", folder / "config.json")
    artifact = Artifact(source, external_manifest("model", "base", [], "ab" * 32), external=str(source))
    inputs = Inputs({"model": artifact, "data": toy_data.with_subset("cot")})
    write_model_card(folder, stage="sft", config=SftConfig(), inputs=inputs, steps=1, **more)
    return ModelCard.load(folder / "README.md")


def test_datasets_are_the_hub_ids_of_the_sources(source, toy_data, work):
    files = {"kind": "files", "path": "/data/own.jsonl", "id": "org/not-of-the-hub"}
    hub = [
        {"kind": "hub", "id": name} for name in ("openai/gsm8k", "imdb", "allenai/c4", "openai/gsm8k", "./folder", "a\n---\nb: c/d", None)
    ]
    toy_data.manifest.config = {"sources": [files, *hub, {"kind": "starter"}, "imdb"]}
    card = written(work.output, source, toy_data)
    assert card.data.datasets == ["allenai/c4", "imdb", "openai/gsm8k"]
    assert "`dataset/toy@v1:cot`" in card.text
    for config in ({}, {"sources": None}, {"sources": {"kind": "hub", "id": "imdb"}}, {"sources": [{"kind": "starter"}]}):
        toy_data.manifest.config = config
        assert written(work.output, source, toy_data).data.datasets is None


@pytest.fixture
def source(tiny_model, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    shutil.copy(tiny_model / "config.json", folder)
    return folder


def state(source, **metadata):
    (source / "README.md").write_text(f"---\n{CardData(**metadata).to_yaml()}\n---\n# A model\n")


@pytest.mark.parametrize(
    ("stated", "data"),
    [
        ({"license": "Apache-2.0", "base_model": "org/base"}, {"license": "apache-2.0", "base_model": "org/base"}),
        ({"license": "other", "license_name": "own", "license_link": "LICENSE"}, {"license": "other", "license_name": "own"}),
        ({"license": ["mit", "cc-by-4.0"]}, {"license": "other", "license_name": "mit, cc-by-4.0"}),
        ({"base_model": ["org/a", "org/b"]}, {"license": None, "base_model": None}),
    ],
)
def test_licence_and_base_come_from_the_source_models_card(stated, data, source, toy_data, work):
    state(source, **stated)
    card = written(work.output, source, toy_data)
    assert {key: getattr(card.data, key) for key in data} == data
    if data["license"]:
        assert f"`{data.get('license_name', data['license'])}`" in card.text


def test_a_licence_in_the_configuration_is_used_where_there_is_no_card(source, toy_data, work):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"license": "mit"}))
    assert written(work.output, source, toy_data).data.license == "mit"


@pytest.mark.parametrize("hostile", ["x\n---\nlicense: mit\n", "a/b\n---\n# Own", "'\"}: [&a *a", "<script>`|`</script>\u202e", "- " * 400])
def test_outside_text_cannot_break_the_front_matter(hostile, source, toy_data, work):
    state(source, license=hostile, base_model=hostile, license_name=hostile, license_link=hostile, tags=["evil"])
    card = written(work.output, source, toy_data)
    assert card.data.license == "other" and card.data.base_model is None and card.data.library_name == "transformers"
    assert "\n" not in card.data.license_name and card.data.tags == ["safework", "safework-sft"]
    assert card.text.lstrip().startswith("# Model made by `safework sft`")
    assert "<script>" not in card.text and "\n# Own" not in card.text and "\u202e" not in card.content


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"---\n: [\n---\n", "its metadata are not YAML: "),
        (b"\xff\xfe", "UnicodeDecodeError: "),
        (b"---\n- a\n---\n", "ValueError: repo card metadata block should be a dict"),
        (b"---\n1: a\n---\n", "TypeError: "),
        (b"x" * (2**20 + 1), "it has more than 1,048,576 bytes"),
        (b"no metadata", ""),
    ],
)
def test_a_damaged_card_of_the_source_states_nothing_and_the_new_card_says_so(content, problem, source, toy_data, work):
    (source / "README.md").write_bytes(content)
    made = written(work.output, source, toy_data)
    assert made.data.license is None
    assert ("could not be read" in made.text) == bool(problem) and problem in html.unescape(made.text)


def test_an_error_that_is_not_the_cards_is_not_hidden(source, toy_data, work, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(card.ModelCard, "load", fail)
    with pytest.raises(MemoryError):
        written(work.output, source, toy_data)


def test_an_evaluation_during_training_is_in_the_card(source, toy_data, work, tmp_path):
    evaluation = {
        "metric": "safety", "start": 0.5, "best": 0.9, "best_step": 4, "last": 0.1, "last_step": 12, "saved_step": 4, "stopped_early": True,
        "evaluations": 7, "prompts": 3, "data": str(tmp_path / "held|out.jsonl"), "judges": {"safety": "rule:refusal"},
    }  # fmt: skip
    text = written(work.output, source, toy_data, evaluation=evaluation).text
    assert "those of step 4. The run stopped early." in text and "| `best` | `4` | `0.9` |" in text
    assert "| `safety` | `rule:refusal` |" in text and "held&#124;out&#46;jsonl" in text and str(tmp_path) not in text
