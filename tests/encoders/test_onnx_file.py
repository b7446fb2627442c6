"""The small ONNX reader on the real file and on broken ones."""

import pytest
import torch

from encoders.onnx_file import read_onnx


@pytest.fixture(scope="module")
def onnx_path(asset_dir):
    (path,) = asset_dir("vit_s14_focus").rglob("*.onnx")
    return path


def test_reads_every_tensor_and_node_of_a_real_export(onnx_path):
    graph = read_onnx(onnx_path)
    assert len(graph.tensors) == 243
    assert len(graph.nodes) == 1485
    assert sum(t.numel() for t in graph.tensors.values()) == 24_286_721
    assert graph.tensors["backbone.embeddings.cls_token"].shape == (1, 1, 384)
    (conv,) = [node for node in graph.nodes if node.name.endswith("projection/Conv")]
    assert (conv.op_type, conv.inputs[1]) == (
        "Conv",
        "backbone.embeddings.patch_embeddings.projection.weight",
    )


def test_reads_every_tensor_and_node_as_the_onnx_package_does(onnx_path):
    onnx = pytest.importorskip("onnx")
    ours, theirs = read_onnx(onnx_path), onnx.load(onnx_path).graph
    nodes = [(n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in theirs.node]
    assert [(n.name, n.op_type, n.inputs, n.outputs) for n in ours.nodes] == nodes
    assert len(ours.tensors) == len(theirs.initializer)
    for tensor in theirs.initializer:
        expected = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        assert torch.equal(ours.tensors[tensor.name], expected)


@pytest.mark.parametrize("keep", [0, 1, 1000, 5_000_000])
def test_file_cut_short_is_an_error_that_names_it(onnx_path, tmp_path, keep):
    cut = tmp_path / "cut.onnx"
    with onnx_path.open("rb") as file:
        cut.write_bytes(file.read(keep))
    with pytest.raises(ValueError, match=r"cut\.onnx cannot be read as an ONNX model"):
        read_onnx(cut)


def test_text_file_is_an_error_that_names_it(tmp_path):
    text = tmp_path / "notes.onnx"
    text.write_text("these are not weights\n" * 50)
    with pytest.raises(ValueError, match=r"notes\.onnx cannot be read as an ONNX model"):
        read_onnx(text)


def test_tensor_of_unknown_type_or_wrong_length_is_an_error(tmp_path):
    def message(number, payload):
        return bytes([number << 3 | 2, len(payload)]) + payload

    path = tmp_path / "odd.onnx"
    name = message(8, b"w")
    complex128 = bytes([1 << 3, 1, 2 << 3, 15]) + name + message(9, bytes(16))
    path.write_bytes(message(7, message(5, complex128)))
    with pytest.raises(ValueError, match="tensor 'w' has data type 15"):
        read_onnx(path)
    short = bytes([1 << 3, 3, 2 << 3, 1]) + name + message(9, bytes(8))
    path.write_bytes(message(7, message(5, short)))
    with pytest.raises(ValueError, match=r"tensor 'w' of shape \[3\] has 8 bytes"):
        read_onnx(path)
    whole = bytes([1 << 3, 2, 2 << 3, 1]) + name + message(9, torch.tensor([1.5, -2.0]).numpy().tobytes())
    path.write_bytes(message(7, message(5, whole)))
    assert torch.equal(read_onnx(path).tensors["w"], torch.tensor([1.5, -2.0]))
