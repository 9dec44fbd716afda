"""The weights of an ONNX file, read from its protobuf encoding.

Only what a conversion needs is read: tensors whose numbers are in the file as little-endian float32, and which node uses which of them. An
exporter folds the transposed matrix of a linear layer into a tensor with a number for a name; the node that multiplies by it still has the
layer's name. (The onnx package reads all of the format; it would be a dependency for one conversion.)

Field numbers are those of onnx.proto: ModelProto.graph 7; GraphProto.node 1, .initializer 5; NodeProto.input 1, .name 3;
TensorProto.dims 1, .data_type 2, .name 8, .raw_data 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from safework_cli.core.errors import InputError

_FLOAT = 1
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_FIXED = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}
Field = tuple[int, int | memoryview]


class Onnx(NamedTuple):
    """The weights of a graph.

    Attributes:
        tensors: name → float32 numbers; tensors of other types are left out.
        used_by: name of a node → the names of its inputs.
    """

    tensors: dict[str, np.ndarray]
    used_by: dict[str, list[str]]


def read_onnx(file: Path) -> Onnx:
    """Reads a file.

    Raises:
        InputError: it is not an ONNX file, is cut off, or a tensor's bytes do not fit its shape.
    """
    tensors: dict[str, np.ndarray] = {}
    used_by: dict[str, list[str]] = {}
    try:
        for graph in _messages(memoryview(file.read_bytes()), 7):
            for node in _messages(graph, 1):
                used_by[_text(node, 3)] = [bytes(name).decode() for name in _messages(node, 1)]
            for tensor in _messages(graph, 5):
                if _number(tensor, 2) == _FLOAT:
                    shape = [value for number, value in _fields(tensor) if number == 1 and isinstance(value, int)]
                    raw = b"".join(_messages(tensor, 9))
                    tensors[_text(tensor, 8)] = np.frombuffer(raw, "<f4").reshape(shape)
    except (ValueError, IndexError) as error:
        raise InputError(f"{file.name} cannot be read as ONNX", str(error), "download it again") from None
    if not tensors:
        raise InputError(f"{file.name} cannot be read as ONNX", "it holds no float32 tensors", "download it again")
    return Onnx(tensors, used_by)


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The values of a field that are bytes: texts, data or messages."""
    return (value for number, value in _fields(message) if number == wanted and isinstance(value, memoryview))


def _text(message: memoryview, wanted: int) -> str:
    return b"".join(_messages(message, wanted)).decode()


def _number(message: memoryview, wanted: int) -> int:
    return next((value for number, value in _fields(message) if number == wanted and isinstance(value, int)), 0)


def _fields(message: memoryview) -> Iterator[Field]:
    """The fields of a protobuf message in their order: (number, value), where a value of fixed width is left as its bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, place = _varint(message, place)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ValueError(f"a field has the unknown wire type {kind}")
        if place + length > len(message):
            raise ValueError("a field is longer than what holds it")
        yield tag >> 3, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first; and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number has more than ten bytes")
