"""On the PYTHONPATH of a test's processes: lets accelerate divide a model by FSDP2 on CPUs, which accelerate does not offer."""

import os

if "LOCAL_RANK" in os.environ:
    import accelerate.state
    from accelerate.utils import DistributedType

    made = accelerate.state.AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = init
