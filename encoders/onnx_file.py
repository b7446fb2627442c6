"""Reads the tensors and the wiring of an ONNX file without the onnx package.

Enough of the protobuf wire format (varints and length-delimited fields) to list a graph's initializers and
nodes. Field numbers are those of onnx.proto: ModelProto.graph 7; GraphProto.node 1, initializer 5;
NodeProto.input 1, output 2, name 3, op_type 4; TensorProto.dims 1, data_type 2, float_data 4, name 8,
raw_data 9, external_data 13, data_location 14.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
}


@dataclass(frozen=True)
class Node:
    """One operation of the graph with the names of the tensors it reads and writes."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class OnnxGraph:
    """The stored tensors by name, and the nodes in the order of the file."""

    tensors: dict[str, Tensor]
    nodes: list[Node]


def read_onnx(path: Path) -> OnnxGraph:
    """Initializers and nodes of an ONNX file; ValueError when the file is cut short or is no ONNX model."""
    try:
        graphs = [value for number, value in _fields(memoryview(path.read_bytes())) if number == 7]
        if len(graphs) != 1 or not isinstance(graphs[0], memoryview):
            raise ValueError(f"{len(graphs)} graphs in it, expected one")
        tensors: dict[str, Tensor] = {}
        nodes = []
        for number, value in _fields(graphs[0]):
            if number == 1 and isinstance(value, memoryview):
                nodes.append(_node(value))
            elif number == 5 and isinstance(value, memoryview):
                name, tensor = _tensor(value)
                tensors[name] = tensor
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as an ONNX model: {error}") from error
    return OnnxGraph(tensors, nodes)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) pairs of one message: integers for varints, bytes for everything else."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"it ends inside a field of {size} bytes")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("it ends inside a number")


def _node(data: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    for number, value in _fields(data):
        if number in texts and isinstance(value, memoryview):
            texts[number].append(str(value, "utf-8"))
    return Node("".join(texts[3]), "".join(texts[4]), tuple(texts[1]), tuple(texts[2]))


def _tensor(data: memoryview) -> tuple[str, Tensor]:
    dims: list[int] = []
    name, data_type, raw = "", 0, memoryview(b"")
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            dims.append(value)
        elif number == 1 and isinstance(value, memoryview):  # packed
            position = 0
            while position < len(value):
                dim, position = _varint(value, position)
                dims.append(dim)
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 8 and isinstance(value, memoryview):
            name = str(value, "utf-8")
        elif isinstance(value, memoryview) and (number == 9 or (number == 4 and data_type == 1)):
            raw = value
        elif number == 13 or (number == 14 and value == 1):
            raise ValueError(f"tensor {name or '?'} keeps its data in another file")
    dtype = _DTYPES.get(data_type)
    if dtype is None:
        raise ValueError(f"tensor {name!r} has data type {data_type}; known are {sorted(_DTYPES)}")
    if len(raw) != int(np.prod(dims, dtype=np.int64)) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} of shape {dims} has {len(raw)} bytes")
    return name, torch.from_numpy(np.frombuffer(raw, dtype).reshape(dims).copy())
