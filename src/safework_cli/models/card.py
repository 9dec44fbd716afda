"""The card of a model that was trained or averaged: ``README.md`` with the metadata that the hub reads, and the lineage for people.

The card is part of the payload: the same request gives the same bytes. It holds no date, host, absolute path or artifact name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # noqa: TID251  # for the errors that huggingface_hub lets through
from huggingface_hub import ModelCard, ModelCardData

from safework_cli.core.artifacts import Artifact
from safework_cli.core.artifacts.adapters import read_base
from safework_cli.core.config import flatten, result_settings
from safework_cli.core.settings import StageConfig
from safework_cli.core.stage import Inputs
from safework_cli.models.folder import read_json
from safework_cli.report.text import escaped, shortened

CARD = "README.md"
LONGEST_CARD = 2**20
"""Bytes of a source model's own card that are read at most."""
SHOWN_CHARACTERS = 300
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)
_DATASET_ID = re.compile(rf"{_HUB_ID.pattern}|[A-Za-z0-9][\w.-]{{0,95}}", re.ASCII)  # the hub's oldest datasets have no owner
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_LINK = re.compile(r"(https?://)?[\w./%#?=&:+~-]{1,200}", re.ASCII)
_CODE = re.compile(r"[!-_a-{}~]([ -_a-{}~]*[!-_a-{}~])?")  # printable ASCII without the backtick and the bar of a table


def write_model_card(
    folder: Path, *, stage: str, config: StageConfig, inputs: Inputs, steps: int, evaluation: Mapping[str, Any] | None = None
) -> None:
    """Writes the card of a model that was trained from ``inputs.one("model")`` on ``inputs.one("data")``.

    Args:
        stage: the command that made it ("rl m3").
        steps: optimizer steps of the run.
        evaluation: the result of the evaluations during training (``metrics["evaluation"]`` of the manifest).
    """
    source = inputs.one("model")
    stated, unread = _stated(source.path)
    adapter_of = read_base(folder)
    data = ModelCardData(
        base_model=_base_model(source, stated),
        datasets=_hub_datasets(inputs.one("data")) or None,
        library_name="transformers" if adapter_of is None else "peft",
        tags=["safework", f"safework-{stage.replace(' ', '-')}"],
        **_licence(stated),
    )
    use = _use(_auto_class(folder)) if adapter_of is None else _use_of_adapter()
    body = "\n".join(_body(stage, config, inputs, steps, evaluation, data, unread, use))
    (folder / CARD).write_text(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")), encoding="utf-8")


def write_average_card(folder: Path, models: Sequence[Artifact], config: StageConfig) -> None:
    """Writes the card of a weighted mean of models. A licence is stated only where all their folders state the same one."""
    stated = [_stated(model.path) for model in models]
    licences = [_licence(one) for one, _ in stated]
    bases = {_base_model(model, one) for model, (one, _) in zip(models, stated, strict=True)}
    data = ModelCardData(
        base_model=bases.pop() if len(bases) == 1 else None,
        library_name="transformers",
        tags=["safework", "safework-models-average", "merge"],
        **(licences[0] if all(licence == licences[0] for licence in licences) else {}),
    )
    unread = " ".join(dict.fromkeys(problem for _, problem in stated if problem))
    body = "\n".join(_average_body(models, config, data, licences, unread, _auto_class(folder)))
    (folder / CARD).write_text(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")), encoding="utf-8")


def write_merge_card(folder: Path, adapter: Artifact, base: str) -> None:
    """Writes the card of an adapter that was merged into its base.

    Args:
        base: the base's reference.
    """
    stated, unread = _stated(adapter.path)
    data = ModelCardData(
        base_model=_base_model(adapter, stated), library_name="transformers", tags=["safework", "safework-models-merge"], **_licence(stated)
    )
    body = [
        "# Model made by `safework models merge`",
        "",
        f"The adapter {_code(_reference(adapter))} added to the weights of its base, {_code(_without_folders(base))}.",
        _licence_line(data),
        *([unread] if unread else []),
        "",
        *_use(_auto_class(folder)),
    ]
    (folder / CARD).write_text(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(body))), encoding="utf-8")


def _average_body(
    models: Sequence[Artifact],
    config: StageConfig,
    data: ModelCardData,
    licences: Sequence[Mapping[str, Any]],
    unread: str,
    auto_class: str,
) -> Iterator[str]:
    yield "# Model made by `safework models average`"
    yield ""
    base = f" All descend from {_code(data.base_model)}." if isinstance(data.base_model, str) else ""
    yield f"The weighted mean of the weights of {len(models)} models, tensor by tensor.{base}"
    if all(licence == licences[0] for licence in licences):
        yield _licence_line(data)
    else:
        yield "The folders of the source models state different licences: read them before you use this model."
    yield from [unread] if unread else []
    yield ""
    yield "## Lineage"
    yield ""
    weights = config.model_dump()["weights"]
    lines = [(_reference(model), f"{weight:g}", model.digest) for model, weight in zip(models, weights, strict=True)]
    yield from _table(("model", "weight", "sha256"), lines)
    yield from _use(auto_class)


def _stated(folder: Path) -> tuple[dict[str, Any], str]:
    """What a model folder says of itself: the metadata of its card, and the licence in config.json where the card has none. And a
    sentence where a card is there and cannot be read: it then states nothing."""
    stated: dict[str, Any] = {}
    unread = ""
    try:
        if (folder / CARD).stat().st_size <= LONGEST_CARD:
            stated = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data.to_dict()
        else:
            unread = f"it has more than {LONGEST_CARD:,} bytes"
    except FileNotFoundError:
        pass
    except yaml.YAMLError as error:
        unread = f"its metadata are not YAML: {getattr(error, 'problem', None) or type(error).__name__}"
    except OSError as error:
        unread = error.strerror or type(error).__name__
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # what the hub's class makes of another's metadata
        unread = f"{type(error).__name__}: {error}"
    if not stated.get("license"):
        try:
            stated["license"] = json.loads((folder / "config.json").read_bytes()).get("license")
        except (OSError, ValueError, AttributeError, RecursionError):
            stated["license"] = None
    return stated, f"The card in the source model's folder could not be read ({_line(unread)})." if unread else ""


def _base_model(source: Artifact, stated: Mapping[str, Any]) -> str | None:
    """The hub repository that the model descends from: the one that was pulled, or the one that the source's card names."""
    pulled = source.manifest.config.get("source") if source.manifest.stage == "models pull" else None
    named = next((ref for ref in (source.external, pulled) if isinstance(ref, str) and ref.startswith("hf:")), None)
    repo = named.removeprefix("hf:").partition("@")[0] if named else stated.get("base_model")
    return repo if isinstance(repo, str) and _HUB_ID.fullmatch(repo) else None


def _hub_datasets(data: Artifact) -> list[str]:
    """The hub's ids of the sources that a dataset was built from. Other sources, and our own references, are not known to the hub."""
    sources = data.manifest.config.get("sources")
    listed = [source for source in sources if isinstance(source, Mapping)] if isinstance(sources, list) else []
    ids = {source.get("id") for source in listed if source.get("kind") == "hub"}
    return sorted(one for one in ids if isinstance(one, str) and _DATASET_ID.fullmatch(one))


def _licence(stated: Mapping[str, Any]) -> dict[str, Any]:
    """The hub's fields for a licence. A licence that is not one of the hub's identifiers is ``other``, with its name."""
    licence = stated.get("license")
    if isinstance(licence, list) and all(isinstance(one, str) for one in licence):
        licence = ", ".join(licence)
    if not isinstance(licence, str) or not licence.strip():
        return {}
    fields: dict[str, Any] = {"license": licence.lower()}
    if not _LICENCE_ID.fullmatch(licence.lower()):
        fields = {"license": "other", "license_name": _line(licence)}
    name, link = stated.get("license_name"), stated.get("license_link")
    if fields["license"] == "other" and isinstance(name, str) and name.strip():
        fields["license_name"] = _line(name)
    if isinstance(link, str) and _LINK.fullmatch(link):
        fields["license_link"] = link
    return fields


def _body(
    stage: str,
    config: StageConfig,
    inputs: Inputs,
    steps: int,
    evaluation: Mapping[str, Any] | None,
    data: ModelCardData,
    unread: str,
    use: Iterator[str],
) -> Iterator[str]:
    yield f"# Model made by `safework {stage}`"
    yield ""
    base = f", which descends from {_code(data.base_model)}" if isinstance(data.base_model, str) else ""
    yield f"Trained for {steps} steps from {_code(_reference(inputs.one('model')))}{base}, on {_code(_reference(inputs.one('data')))}."
    yield _licence_line(data)
    yield from [unread] if unread else []
    yield ""
    yield "## Lineage"
    yield ""
    yield from _table(("input", "reference", "sha256"), [(key, _reference(one), one.digest) for key, one in inputs.flat().items()])
    yield "## Settings that differ from the defaults"
    yield ""
    changed = _changed(config)
    yield from _table(("setting", "value"), changed) if changed else ["None.", ""]
    if evaluation:
        yield from _evaluation(evaluation)
    yield from use


def _licence_line(data: ModelCardData) -> str:
    if data.license is None:
        return "No licence could be read from the source model's folder."
    return f"Licence stated by the source model's folder: {_code(data.license_name or data.license)}."


def _use(auto_class: str) -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "Save this folder as `FOLDER`, then load it:"
    yield ""
    yield "```python"
    yield f"from transformers import {auto_class}, AutoTokenizer"
    yield ""
    yield 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
    yield f'model = {auto_class}.from_pretrained("FOLDER")'
    yield "```"
    yield ""
    yield "and evaluate it:"
    yield ""
    yield "```bash"
    yield "safework eval -c quickstart/eval.yaml model=./FOLDER data=starter:heldout"
    yield "```"
    yield ""


def _use_of_adapter() -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "The folder holds an adapter (LoRA, in peft's format) of the input `model`. safework loads both; for other programs:"
    yield ""
    yield "```bash"
    yield "safework models merge ADAPTER --name NAME"
    yield "safework artifacts export model/NAME FOLDER"
    yield "```"
    yield ""


def _auto_class(folder: Path) -> str:
    vision = read_json(folder / "config.json").get("vision_config") is not None
    return "AutoModelForImageTextToText" if vision else "AutoModelForCausalLM"


def _evaluation(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## Evaluation during training"
    yield ""
    stopped = " The run stopped early." if record["stopped_early"] else ""
    yield (
        f"{record['prompts']} held-out prompts of {_code(_without_folders(record['data']))}, {record['evaluations']} evaluations. "
        f"The saved weights are those of step {record['saved_step']}.{stopped}"
    )
    yield ""
    metric = record["metric"]
    steps = [
        ("start", 0, record["start"]),
        ("best", record["best_step"], record["best"]),
        ("last", record["last_step"], record["last"]),
    ]
    yield from _table((metric, "step", "value"), steps)
    yield from _table(("judge", "reference"), [(name, _without_folders(ref)) for name, ref in record["judges"].items()])


def _changed(config: StageConfig) -> list[tuple[str, str]]:
    """Settings that are part of a run's identity and have other values than the defaults."""
    defaults = dict(flatten(result_settings(type(config)())))
    given = flatten(result_settings(config))
    return [(key, _value(value)) for key, value in sorted(given) if key not in defaults or defaults[key] != value]


def _value(value: Any) -> str:
    return _without_folders(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _reference(artifact: Artifact) -> str:
    return _without_folders(artifact.ref)


def _without_folders(ref: str) -> str:
    """A reference as others can read it: of an absolute path, its last part."""
    return Path(ref).name if Path(ref).is_absolute() else ref


def _table(header: tuple[str, ...], lines: list[tuple[Any, ...]]) -> list[str]:
    shown = [tuple(map(_code, line)) for line in lines]
    cells = [tuple(map(escaped, header)), ("---",) * len(header), *shown]
    return [*("| " + " | ".join(row) + " |" for row in cells), ""]


def _code(value: Any) -> str:
    """Text from outside as a code span, or escaped where a code span could not hold it."""
    text = str(value)
    return f"`{text}`" if len(text) <= SHOWN_CHARACTERS and _CODE.fullmatch(text) else escaped(shortened(text, SHOWN_CHARACTERS))


def _line(text: str) -> str:
    """Text from outside as one line of the metadata, without control characters."""
    return "".join(character if character.isprintable() else " " for character in text).strip()[:SHOWN_CHARACTERS]
