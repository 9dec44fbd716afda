"""The run of ``safework verifier wrap``, from top to bottom."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts import Artifact
from safework_cli.core.stage import Outcome, WorkDir
from safework_cli.data.dataset import read_dataset
from safework_cli.models.load import load_model, load_tokenizer, template_hash
from safework_cli.models.processors import load_processor
from safework_cli.verifiers.labels import LabelVerifier
from safework_cli.verifiers.load import load_verifier
from safework_cli.verifiers.spec import LabelSpec
from safework_verifier.measure import measure, measure_verdicts
from safework_verifier.rows import Parts, labelled_rows, split_by_prompt
from safework_verifier.save import outcome, write_reports
from safework_verifier.wrap.config import WrapConfig


def wrap(config: WrapConfig, model: Artifact | None, data: Artifact | None, work: WorkDir) -> Outcome:
    """Checks that the judge works with its labels, measures it where there is data, and writes its folder."""
    spec = config.spec()
    parts = None
    if data is not None:
        items, missing = labelled_rows(read_dataset(data), spec, config.tolerated_missing_labels)
        parts = split_by_prompt(items, missing, config.eval_fraction, config.seed)
        parts.train = []  # nothing is trained: the other rows are not used
    if model is None:
        return _served(config, spec, parts, data, work)
    tokenizer = load_tokenizer(model.path, trust_remote_code=config.trust_remote_code)
    judge = LabelVerifier(
        load_model(model.path, trust_remote_code=config.trust_remote_code),
        tokenizer,
        spec,
        processor=load_processor(model.path, trust_remote_code=config.trust_remote_code),
        batch_size=config.per_device_eval_batch_size,
    )
    metrics: dict[str, Any] = {}
    if parts is not None and data is not None:
        metrics = measure(judge, parts, config.attack_rows, config.seed, work)
    with work.progress.phase("copy"):
        _copy_model(model.path, work.output)
    return _finished(config, spec, metrics, parts, (model.ref, data.ref if data else ""), template_hash(tokenizer), work)


def _served(config: WrapConfig, spec: LabelSpec, parts: Parts | None, data: Artifact | None, work: WorkDir) -> Outcome:
    """A served judge: only its labels are measured, because it need not return probabilities."""
    assert spec.endpoint is not None
    spec.write(work.output)
    judge = load_verifier(work.output)
    metrics: dict[str, Any] = {}
    if parts is not None and data is not None:
        metrics = measure_verdicts(judge, spec, parts, config.seed, work)
    made_of = (f"{spec.endpoint.model} at {spec.endpoint.url}", data.ref if data else "")
    return _finished(config, spec, metrics, parts, made_of, None, work)


def _finished(
    config: WrapConfig,
    spec: LabelSpec,
    metrics: dict[str, Any],
    parts: Parts | None,
    made_of: tuple[str, str],
    template: str | None,
    work: WorkDir,
) -> Outcome:
    spec.write(work.output)
    if parts is not None:
        write_reports(spec, metrics, parts, made_of, work)
        return outcome(metrics, config.min_accuracy, template, work, config.max_failed)
    note = "nothing was measured: no labelled data was given"
    work.progress.warn(note)
    return Outcome(notes=[note], chat_template_hash=template)


def _copy_model(source: Path, target: Path) -> None:
    """The model's files, without the artifact's manifest and hidden files."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name != "manifest.json" and not any(part.startswith(".") for part in path.relative_to(source).parts):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
