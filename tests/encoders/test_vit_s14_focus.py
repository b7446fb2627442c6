"""The exported ViT-S/14 in timm's form against onnxruntime on a real photo."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from encoders.onnx_file import Node, OnnxGraph, read_onnx
from encoders.timm_image import TimmImage
from encoders.vit_s14_focus import _named, read_weights, resize_positions

LAYERS = [2, 5, 8, 11]


def field(number, payload):
    """One length-delimited protobuf field."""
    size, length = [], len(payload)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + payload


@pytest.fixture(scope="module")
def onnx_path(asset_dir):
    (path,) = asset_dir("vit_s14_focus").rglob("*.onnx")
    return path


@pytest.fixture(scope="module")
def photo(asset_dir):
    (path,) = asset_dir("llama_models").rglob("dog.jpg")
    return Image.open(path).convert("RGB")


@pytest.fixture(scope="module")
def encoder(onnx_path):
    return TimmImage(
        "vit_small_patch14_dinov2",
        layers=LAYERS,
        final=True,
        keep_prefix=True,
        weights=onnx_path,
        weights_format="dinov2_onnx",
    ).eval()


def test_features_equal_onnxruntime_at_every_tapped_layer(onnx_path, photo, encoder):
    onnxruntime = pytest.importorskip("onnxruntime")
    names = [f"/backbone/encoder/layer.{layer}/Add_1_output_0" for layer in LAYERS]
    names.append("/backbone/layernorm/Add_1_output_0")
    # Protobuf merges a repeated submessage: a second graph field adds outputs to the first.
    outputs = b"".join(field(12, field(1, name.encode())) for name in names)
    session = onnxruntime.InferenceSession(
        onnx_path.read_bytes() + field(7, outputs), providers=["CPUExecutionProvider"]
    )
    pixels = encoder.preprocess(photo)[None]
    expected = np.concatenate(session.run(names, {"input_image": pixels.numpy()}), axis=-1)
    with torch.no_grad():
        features = encoder(pixels).numpy()
    assert features.shape == expected.shape == (1, 257, 5 * 384)
    for part in range(len(names)):
        ours, theirs = (x[..., part * 384 : (part + 1) * 384] for x in (features, expected))
        assert np.abs(ours - theirs).max() < 5e-6 * np.abs(theirs).max()


def test_every_parameter_is_filled_and_the_digest_is_of_the_file(onnx_path, encoder):
    assert encoder.digest == "sha256:f0a0328e68070d2387598e73dff9c4a9e74474c4113ae4c23999b7ebaa91eae2"
    model = timm.create_model("vit_small_patch14_dinov2", img_size=224)
    assert set(read_weights(onnx_path, model)) == set(model.state_dict())


def test_position_embeddings_keep_their_own_grid_and_follow_another(onnx_path):
    positions = _named(read_onnx(onnx_path), onnx_path)["position_patches"]
    assert torch.equal(resize_positions(positions, (37, 37)), positions)
    assert resize_positions(positions, (8, 12)).shape == (1, 96, 384)
    wide = TimmImage(
        "vit_small_patch14_dinov2",
        layers=[0],
        image_size=(112, 168),
        weights=onnx_path,
        weights_format="dinov2_onnx",
    )
    assert (wide.grid, wide.num_tokens, wide.dim) == ((8, 12), 96, 384)
    square = TimmImage(
        "vit_small_patch14_dinov2",
        layers=[0],
        image_size=112,
        weights=onnx_path,
        weights_format="dinov2_onnx",
    )
    assert square.digest == wide.digest and square.identity != wide.identity
    resized = resize_positions(positions, (8, 12))
    assert torch.equal(wide.model.pos_embed[:, 1:], resized)


def test_linear_weights_are_found_by_their_node_whatever_the_order_of_the_file(onnx_path):
    graph = read_onnx(onnx_path)
    shuffled = OnnxGraph(dict(reversed(graph.tensors.items())), graph.nodes[::-1])
    forwards, backwards = (_named(g, onnx_path) for g in (graph, shuffled))
    assert forwards.keys() == backwards.keys()
    assert all(torch.equal(forwards[key], backwards[key]) for key in forwards)


def test_tensor_of_no_known_part_is_an_error(tmp_path):
    graph = OnnxGraph(
        {"onnx::Add_7": torch.zeros(3)}, [Node("/neck/Add", "Add", ("x", "onnx::Add_7"), ("y",))]
    )
    with pytest.raises(ValueError, match="Add '/neck/Add' reads onnx::Add_7, which fits no part"):
        _named(graph, tmp_path)
    with pytest.raises(ValueError, match="no node reads"):
        _named(OnnxGraph(graph.tensors, []), tmp_path)


def test_weights_of_another_model_are_named(onnx_path):
    with pytest.raises(ValueError, match="does not fit vit_base_patch14_dinov2: of another shape 174: "):
        TimmImage("vit_base_patch14_dinov2", weights=onnx_path, weights_format="dinov2_onnx")
