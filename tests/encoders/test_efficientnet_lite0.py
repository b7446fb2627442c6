"""The published EfficientNet-Lite0 in timm's form, checked by what it sees."""

import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo

from encoders.efficientnet_lite0 import read_weights, timm_name
from encoders.timm_image import TimmImage

DOGS = slice(151, 269)  # ImageNet-1k: Chihuahua to Mexican hairless


@pytest.fixture(scope="module")
def weights(asset_dir):
    (path,) = asset_dir("efficientnet_lite0").rglob("*.pth")
    return path


@pytest.fixture(scope="module")
def whole(weights):
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(read_weights(weights, model))  # strict: each of the 296 keys, once
    return model


@pytest.fixture(scope="module")
def encoder(weights):
    return TimmImage(
        "tf_efficientnet_lite0",
        weights=weights,
        weights_format="efficientnet_lite0",
        resize_mode="crop",
    ).eval()


@pytest.fixture(scope="module")
def photo(asset_dir):
    def open_photo(asset, name):
        (path,) = asset_dir(asset).rglob(name)
        return Image.open(path).convert("RGB")

    return open_photo


def probabilities(whole, encoder, image):
    with torch.no_grad():
        return whole(encoder.preprocess(image)[None]).softmax(-1)[0]


def test_real_photos_are_recognised(whole, encoder, photo):
    names = ImageNetInfo()
    coffee = probabilities(whole, encoder, photo("scikit_image_photos", "coffee.png"))
    assert names.index_to_description(int(coffee.argmax())) == "espresso"
    assert coffee.max() > 0.9
    cat = probabilities(whole, encoder, photo("scikit_image_photos", "chelsea.png"))
    assert cat[281:286].sum() > 0.9  # tabby, tiger cat, Persian, Siamese, Egyptian cat
    dog = probabilities(whole, encoder, photo("llama_models", "dog.jpg"))
    assert "spaniel" in names.index_to_description(int(dog.argmax()))
    assert dog[DOGS].sum() > 0.6


def test_features_are_timms_forward_features(whole, encoder, photo):
    pixels = encoder.preprocess(photo("llama_models", "dog.jpg"))[None]
    with torch.no_grad():
        expected = whole.forward_features(pixels)
        assert torch.equal(encoder(pixels), expected.flatten(2).transpose(1, 2))
    assert (encoder.dim, encoder.grid, encoder.num_tokens) == (1280, (7, 7), 49)


def test_settings_are_those_the_weights_were_made_with(encoder):
    assert encoder.mean == (127 / 255,) * 3
    assert encoder.std == (128 / 255,) * 3
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and {norm.eps for norm in norms} == {1e-3}
    assert encoder.digest == "sha256:3397d49c531fce5bfef9b6f0fff47d04d12f09dc71cd27bb04946ab00ff8f16e"


@pytest.mark.parametrize(("image_size", "sides"), [(224, (112, 56, 28, 14, 7)), (160, (80, 40, 20, 10, 5))])
def test_taps_have_the_widths_and_grids_of_their_strides(image_size, sides):
    for layer, (width, side) in enumerate(zip((16, 24, 40, 112, 320), sides, strict=True)):
        tap = TimmImage("tf_efficientnet_lite0", layers=[layer], image_size=image_size)
        assert (tap.dim, tap.grid) == (width, (side, side))


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn0.running_var", "bn1.running_var"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.0._bn2.bias", "blocks.0.0.bn2.bias"),
        ("_blocks.1._bn2.bias", "blocks.1.0.bn3.bias"),
        ("_blocks.10._depthwise_conv.weight", "blocks.4.2.conv_dw.weight"),
        ("_blocks.15._expand_conv.weight", "blocks.6.0.conv_pw.weight"),
        ("_bn1.weight", "bn2.weight"),
        ("_fc.bias", "classifier.bias"),
        ("_blocks.16._bn2.bias", None),
        ("_blocks.0._expand_conv.weight", None),
        ("_se_reduce.weight", None),
        ("blocks.0.0.conv_pw.weight", None),
    ],
)
def test_names_are_mapped_by_pattern(published, ours):
    assert timm_name(published) == ours


def test_unknown_tensor_in_the_file_is_named(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    state["_blocks.3._se_reduce.weight"] = torch.zeros(4, 4)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: 1 of 297 tensors .*_blocks\.3\._se_reduce\.weight"):
        TimmImage(
            "tf_efficientnet_lite0", weights=tmp_path / "other.pth", weights_format="efficientnet_lite0"
        )


def test_missing_tensor_is_named(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    del state["_blocks.3._project_conv.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(
        ValueError, match=r"cut\.pth does not fit .*missing 1: \['blocks\.2\.0\.conv_pwl\.weight'\]"
    ):
        TimmImage("tf_efficientnet_lite0", weights=tmp_path / "cut.pth", weights_format="efficientnet_lite0")
