"""Make a verifier of a model that is a judge already: a released reward model, or one that is served.

Takes a generative judge, or the address of one, with its prompt, labels and scores; makes a verifier that every stage accepts. With
labelled data it is calibrated and measured in the same way as a trained one. Refuses neither or both of model and endpoint, labels
whose tokens do not differ, and labels without a score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safework_cli.core.artifacts.manifest import canonical_digest
from safework_cli.core.artifacts.references import artifact_name
from safework_cli.core.errors import SafeworkError
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.dataset import read_dataset
from safework_cli.training.work import judging_work
from safework_cli.verifiers.image_text import require_reader
from safework_verifier.rows import labelled_rows, split_by_prompt
from safework_verifier.wrap.config import WrapConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


class WrapStage(Stage):
    name = "verifier wrap"
    version = 4  # 3: accuracy's interval by prompt; 4: baselines "…_given_harmful" (was "…_told_harmful")
    summary = "Make a verifier of a model that is a judge already: a released reward model, or one that is served."
    Config = WrapConfig
    starts_over = True
    inputs = {
        "model": Slot(("model",), "the judge, an instruct model", optional=True),
        "data": Slot(("dataset",), "rows with meta.label to calibrate and measure it on", optional=True),
    }
    output = "verifier"

    def plan(self, config: WrapConfig, inputs: Inputs) -> Plan:
        model, data = inputs.maybe("model"), inputs.maybe("data")
        judge = model.name if model else config.engine.model or "judge"
        plan = Plan(name=artifact_name(f"{judge}-{config.task}", "judge"))
        if (model is None) == (config.engine.endpoint is None):
            plan.refuse(
                "give either model=REF or engine.kind=openai",
                "one of them is the judge",
                "model=hf:org/judge, or engine.kind=openai engine.url=… engine.model=…",
            )
        if config.engine.kind == "vllm" or config.engine.attn_implementation:
            given = "engine.kind=vllm" if config.engine.kind == "vllm" else "engine.attn_implementation"
            why = "a verifier reads label probabilities with transformers, by its own choice of attention, here and in every later stage"
            plan.refuse(f"{given} does not act on a verifier", why, f"leave {given} out; engine.kind=openai asks a served judge")
        if config.min_accuracy and data is None:
            why = "accuracy is measured on labelled rows, and no data is given"
            plan.refuse(f"min_accuracy={config.min_accuracy:g} cannot be checked", why, "data=REF with meta.label, or min_accuracy=0")
        try:
            spec = config.spec()
            if spec.read_image_text:
                require_reader()
            plan.lines = [f"wrap {model.ref if model else config.engine.url}: {', '.join(spec.labels)}"]
            if data:
                items, missing = labelled_rows(read_dataset(data), spec, config.tolerated_missing_labels)
                parts = split_by_prompt(items, missing, config.eval_fraction, config.seed)
                plan.lines.append(f"fit the temperature on {len(parts.calibration)} rows, report on {len(parts.report)}")
        except SafeworkError as refusal:
            plan.refusals.append(refusal)
        if model:
            plan.work = judging_work(model.path, config.per_device_eval_batch_size, config.max_length)
            plan.disk_bytes = round(plan.work.shape.stored * plan.work.held)
        return plan

    def external_digests(self, config: WrapConfig) -> dict[str, str]:
        """The specification of a served judge: it is written with all settings of the server, those that no other result depends on too."""
        return {"spec": canonical_digest(config.spec().model_dump(mode="json"))} if config.engine.endpoint else {}

    def judge_again(self, config: WrapConfig, artifact: Artifact) -> Outcome:
        from safework_verifier.save import judged_by

        metrics = artifact.manifest.metrics
        return judged_by(metrics, config.min_accuracy, config.max_failed) if metrics else Outcome()

    def show(self, artifact: Artifact) -> RenderableType:
        from safework_verifier.table import labels_table

        return labels_table(artifact)

    def run(self, config: WrapConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_verifier.wrap.run import wrap

        return wrap(config, inputs.maybe("model"), inputs.maybe("data"), work)


stage = WrapStage()
