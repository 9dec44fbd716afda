"""A kept adapter and its base, as a whole model of its own."""

from __future__ import annotations

import shutil
from typing import ClassVar

from safework_cli.core.artifacts.adapters import is_adapter, read_base
from safework_cli.core.errors import InputError
from safework_cli.core.settings import StageConfig
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir


class MergeConfig(StageConfig):
    """Settings of ``safework models merge``."""

    trust_remote_code: bool = False
    """Run Python code that the base's folder brings along."""


class MergeAdapter(Stage):
    """``safework models merge``: adapter → whole model. Not an entry point, like ``models average``."""

    name = "models merge"
    summary = "Add a kept adapter to the weights of its base."
    Config = MergeConfig
    starts_over = True
    inputs: ClassVar[dict[str, Slot]] = {"model": Slot(("model",), "the adapter")}
    output = "model"

    def plan(self, config: MergeConfig, inputs: Inputs) -> Plan:
        model = inputs.one("model")
        plan = Plan(name=f"{model.name}-merged")
        base = read_base(model.path) if is_adapter(model) else None
        if base is None:
            plan.refuse(f"{model.ref} is a whole model", "there is nothing to merge", "use it as it is", kind=InputError)
            return plan
        plan.lines = [f"{base.ref} + {model.ref}, saved in {base.dtype}"]
        plan.disk_bytes = (4 if base.dtype == "float32" else 2) * base.parameters
        return plan

    def run(self, config: MergeConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_cli.models.card import write_merge_card
        from safework_cli.models.load import load_model, load_tokenizer, save_model, template_hash
        from safework_cli.models.processors import load_processor

        adapter = inputs.one("model")
        base = read_base(adapter.path)
        assert base is not None
        tokenizer = load_tokenizer(adapter.path, trust_remote_code=config.trust_remote_code)
        processor = load_processor(adapter.path, trust_remote_code=config.trust_remote_code)
        with work.progress.phase("merge"):
            model = load_model(adapter.path, dtype=base.dtype, trust_remote_code=config.trust_remote_code)
            save_model(model, processor or tokenizer, work.output)
        for name in ("config.json", "generation_config.json", "*.py"):  # as they were after training; and a model's own code
            for file in adapter.path.glob(name):
                shutil.copy(file, work.output / file.name)
        write_merge_card(work.output, adapter, base.ref)
        return Outcome(
            metrics={"base": base.ref, "dtype": base.dtype},
            seeds={"weights": "no seed acts"},
            chat_template_hash=template_hash(tokenizer),
        )
