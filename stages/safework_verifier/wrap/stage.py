"""Make a verifier of a model that judges already: a released reward model, or one on a server.

Takes a generative judge, or the address of one, and what it is asked: prompts, labels, score map; makes a verifier for every stage.
With labelled data it is calibrated and measured as a trained one is. Refuses: neither or both of model and endpoint, labels that no token
can tell apart, gaps in the score map.
"""

from __future__ import annotations

from safework_cli.core.artifacts.payload import parameter_count
from safework_cli.core.artifacts.references import artifact_name
from safework_cli.core.errors import SafeworkError
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.dataset import read_dataset
from safework_verifier.rows import labelled_rows, take_apart
from safework_verifier.wrap.config import WrapConfig


class WrapStage(Stage):
    name = "verifier wrap"
    version = 3  # 2: sources are divided alike between temperature and report; 3: accuracy's interval by prompt
    summary = "Make a verifier of a model that judges already: a released reward model, or one on a server."
    Config = WrapConfig
    inputs = {
        "model": Slot(("model",), "the judge, an instruct model", optional=True),
        "data": Slot(("dataset",), "rows with meta.label to calibrate and measure it on", optional=True),
    }
    output = "verifier"

    def plan(self, config: WrapConfig, inputs: Inputs) -> Plan:
        model, data = inputs.maybe("model"), inputs.maybe("data")
        judge = model.name if model else config.engine.model or "judge"
        plan = Plan(name=artifact_name(f"{judge}-{config.task}", "judge"))
        if (model is None) == (config.engine.kind == "hf"):
            plan.refuse(
                "give either model=REF or engine.kind=openai",
                "one of them is the judge",
                "model=hf:org/judge, or engine.kind=openai engine.url=… engine.model=…",
            )
        try:
            spec = config.spec()
            plan.lines = [f"wrap {model.ref if model else config.engine.url}: {', '.join(spec.labels)}"]
            if data:
                items, missing = labelled_rows(read_dataset(data), spec, config.tolerated_missing_labels)
                parts = take_apart(items, missing, config.eval_fraction, config.seed)
                plan.lines.append(f"fit the temperature on {len(parts.calibration)} rows, report on {len(parts.report)}")
        except SafeworkError as refusal:
            plan.refusals.append(refusal)
        if model:
            parameters = parameter_count(model.path)
            plan.memory_bytes, plan.disk_bytes = 4 * parameters + 2**30, 2 * parameters
        return plan

    def run(self, config: WrapConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_verifier.wrap.run import wrap

        return wrap(config, inputs.maybe("model"), inputs.maybe("data"), work)


stage = WrapStage()
