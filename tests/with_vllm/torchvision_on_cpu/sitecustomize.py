"""Lets PyPI's torchvision, a build for CUDA, be imported next to a torch for CPUs: its operators are declared first. vLLM's code for images
needs the package, and none of its operators."""

import importlib.abc
import sys

OPERATORS = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor dets, Tensor scores, float iou) -> Tensor")


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            sys.torchvision_library = self.library  # operators are forgotten with the object that declared them
            for operator in OPERATORS:
                self.library.define(operator)


sys.meta_path.insert(0, _BeforeTorchvision())
