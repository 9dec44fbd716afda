"""On the PYTHONPATH of the runs of ``processes_runs``: what they need and the tool does not have."""

import os
import sys

if "LOCAL_RANK" in os.environ:  # accelerate does not divide a model by FSDP2 on CPUs
    import accelerate
    import accelerate.state
    from accelerate.utils import DistributedType

    made, backward = accelerate.state.AcceleratorState.__init__, accelerate.Accelerator.backward

    def init(self, *args, fsdp_plugin=None, **kwargs):
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    def of_nothing(self, loss, **kwargs):
        backward(self, 0.0 * loss, **kwargs)

    def of_nan(self, loss, **kwargs):
        backward(self, float("nan") * loss, **kwargs)

    accelerate.state.AcceleratorState.__init__ = init
    if os.environ.get("PROCESSES_DROPPED") == os.environ["RANK"]:  # the control: this process's rows do not count
        accelerate.Accelerator.backward = of_nothing
    if os.environ.get("PROCESSES_NAN") == os.environ["RANK"]:
        accelerate.Accelerator.backward = of_nan

    if os.environ.get("PROCESSES_RETURN_MEMORY"):
        from safework_cli.models import load

        load._keep_freed_memory = lambda: None

if os.environ.get("PROCESSES_ACTING"):  # a random model writes no action: what it writes is a search, or its answer
    from safework_cli.environments.search import grammar

    def act(text):
        if text[:1] < "A":
            return grammar.Action("search", query=text)
        return grammar.Action("answer", answer=text, confidence=len(text) % 11)

    grammar.parse_action = act
    if (runner := sys.modules.get("safework_cli.environments.search.runner")) is not None:  # in a fork it was imported before
        runner.parse_action = act
