"""The timm encoder: layers, grids, prefix tokens, pixels, identity and errors, on small random models."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from encoders.timm_image import TimmImage

VIT = "test_vit"  # timm's own small models for tests: 6 blocks of width 64, a ResNet, ...
CNN = "test_resnet"


def make(name=VIT, **options):
    return TimmImage(name, **{"image_size": 64, "seed": 3, **options}).eval()


def pixels(encoder, num=2):
    """Pixels in the layout that the encoder gives its model: in another one some processors sum in another order."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randn(num, 3, *encoder.image_size, generator=generator)
    return drawn.contiguous(memory_format=torch.channels_last)


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def spread(encoder):
    """Norms, biases and LayerScale away from their trivial values, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    return encoder


@pytest.mark.parametrize(
    ("name", "options", "dim", "grid", "num_tokens"),
    [
        (VIT, {}, 64, (4, 4), 16),
        (VIT, {"layers": [1, 3]}, 128, (4, 4), 16),
        (VIT, {"layers": [1, 3], "final": True}, 192, (4, 4), 16),
        (VIT, {"layers": [-2, -1], "keep_prefix": True}, 128, (4, 4), 17),
        (VIT, {"layers": [0], "image_size": (32, 96)}, 64, (2, 6), 12),
        (VIT, {"layers": [0, 1], "grid": 2}, 128, (2, 2), 4),
        (VIT, {"layers": [0, 1], "grid": 2, "reduce": "space_to_depth"}, 512, (2, 2), 4),
        (VIT, {"layers": [0], "grid": (3, 5)}, 64, (3, 5), 15),
        ("vit_small_patch14_reg4_dinov2", {"image_size": 56, "keep_prefix": True}, 384, (4, 4), 21),
        (CNN, {}, 96, (2, 2), 4),
        (CNN, {"layers": [2, 4]}, 144, (2, 2), 4),
        (CNN, {"layers": [2, 3], "reduce": "space_to_depth"}, 48 * 4 + 192, (4, 4), 16),
        (CNN, {"layers": [2, 4], "grid": 4}, 144, (4, 4), 16),
        (CNN, {"layers": [3], "image_size": (64, 96)}, 192, (4, 6), 24),
        ("test_mambaout", {"layers": [1], "final": True}, 96, (2, 2), 4),
        ("test_convnext", {"layers": [1], "final": True}, 96, (2, 2), 4),
    ],
)
def test_width_grid_and_tokens_are_those_of_the_features(name, options, dim, grid, num_tokens):
    encoder = make(name, **options)
    assert (encoder.dim, encoder.grid, encoder.num_tokens) == (dim, grid, num_tokens)
    with torch.no_grad():
        assert encoder(pixels(encoder)).shape == (2, num_tokens, dim)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [(VIT, lambda model: model.blocks), (CNN, lambda m: [None, m.layer1, m.layer2, m.layer3, m.layer4])],
)
def test_layers_equal_hooks_on_the_blocks(name, blocks):
    encoder = spread(make(name, layers=[1, 3], final=True))
    seen = {}
    for layer in (1, 3):
        blocks(encoder.model)[layer].register_forward_hook(
            lambda m, i, out, layer=layer: seen.update({layer: out})
        )
    with torch.no_grad():
        features = encoder(pixels(encoder))
        final = encoder.model.forward_features(pixels(encoder))
    if name == VIT:
        expected = torch.cat([seen[1][:, 1:], seen[3][:, 1:], final[:, 1:]], dim=-1)
    else:
        mean_8 = seen[1].unfold(2, 8, 8).unfold(3, 8, 8).mean((-2, -1))
        mean_2 = seen[3].unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
        expected = torch.cat([mean_8, mean_2, final], dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features, expected, rtol=1e-6, atol=1e-6)


def test_prefix_tokens_come_first_and_change_nothing_else():
    with_prefix, without = (make(layers=[1, 3], final=True, keep_prefix=keep) for keep in (True, False))
    with torch.no_grad():
        features = with_prefix(pixels(with_prefix))
        assert torch.equal(features[:, 1:], without(pixels(without)))
        class_token = with_prefix.model.forward_features(pixels(with_prefix))[:, 0]
    assert torch.equal(features[:, 0, -64:], class_token)


def test_norm_applies_the_last_norm_to_the_layers():
    plain, normed = (spread(make(layers=[1, 5], norm=norm, final=True)) for norm in (False, True))
    with torch.no_grad():
        features = normed(pixels(normed))
        assert torch.equal(features[..., 64:128], features[..., 128:])
        expected = plain.model.norm(plain(pixels(plain))[..., :64])
    torch.testing.assert_close(features[..., :64], expected)


def test_tokens_run_row_by_row():
    encoder = make(CNN, layers=[2], image_size=(64, 96))
    with torch.no_grad():
        plain = encoder(pixels(encoder))
        (map_MEhw,) = encoder.model.forward_intermediates(
            pixels(encoder), indices=[2], intermediates_only=True
        )
    rows, columns = encoder.grid
    for row, column in ((0, 1), (1, 0), (rows - 1, columns - 1)):
        assert torch.equal(plain[:, row * columns + column], map_MEhw[:, :, row, column])


def test_space_to_depth_keeps_every_value_and_average_is_its_mean():
    stacked, averaged = (make(CNN, layers=[2, 4], reduce=reduce) for reduce in ("space_to_depth", "average"))
    with torch.no_grad():
        cells = stacked(pixels(stacked))[..., : 48 * 16].unflatten(-1, (16, 48))
        mean = averaged(pixels(averaged))[..., :48]
        (map_MEhw,) = stacked.model.forward_intermediates(
            pixels(stacked), indices=[2], intermediates_only=True
        )
    torch.testing.assert_close(cells.mean(2), mean)
    assert torch.equal(cells.flatten().sort().values, map_MEhw.flatten().sort().values)


def test_balance_gives_each_map_unit_scale_over_its_picture_and_changes_nothing_else():
    plain, balanced = (spread(make(CNN, layers=[2, 4], balance=balance)) for balance in (False, True))
    with torch.no_grad():
        features, unit = plain(pixels(plain)), balanced(pixels(balanced))
    for channels in (slice(0, 48), slice(48, 144)):
        before, after = features[..., channels], unit[..., channels]
        scale = before.square().mean((1, 2), keepdim=True).sqrt()
        assert (scale - 1).abs().min() > 0.01
        torch.testing.assert_close(after, before / scale)


@pytest.mark.parametrize("name", [VIT, CNN])
def test_batched_equals_single(name):
    encoder = spread(make(name, layers=[1, 3], final=True))
    with torch.no_grad():
        together = encoder(pixels(encoder, 3))
        alone = torch.cat([encoder(one[None]) for one in pixels(encoder, 3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (VIT, {"layers": [1]}),
        (VIT, {"layers": [1], "norm": True}),
        (CNN, {"layers": [2]}),
        ("test_convnext", {"final": True}),
        ("mobilenetv3_small_050", {"layers": [1], "final": True}),
        ("test_efficientnet", {"layers": [2, 3]}),
    ],
)
def test_every_parameter_kept_has_an_effect_and_gets_a_gradient(name, options):
    encoder = make(name, **options)
    encoder(pixels(encoder)).square().sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []


def test_random_weights_follow_the_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(0)
    first = make(layers=[0], seed=1).digest
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))
    assert make(layers=[0], seed=1).digest == first != make(layers=[0], seed=2).digest


def test_digest_follows_the_weights_and_not_their_precision():
    encoder = make(CNN, layers=[1])
    before = encoder.digest
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert encoder.to(torch.bfloat16).digest == before
    encoder = make(CNN, layers=[1])
    with torch.no_grad():
        encoder.model.conv1[0].weight[0, 0, 0, 0] += 1
    assert encoder.digest != before
    encoder.load_state_dict(state)
    assert encoder.digest == before


def test_one_set_of_weights_has_one_digest_at_every_picture_size_until_its_table_is_trained():
    small, large = make(layers=[1], image_size=64), make(layers=[1], image_size=96)
    assert small.model.pos_embed.shape != large.model.pos_embed.shape
    assert small.digest == large.digest and small.identity != large.identity
    before = small.model.pos_embed.detach().clone()
    with torch.no_grad():
        small.model.pos_embed[0, 3, 5] += 1
    assert small.digest != large.digest
    with torch.no_grad():
        small.model.pos_embed.copy_(before)
    assert small.digest == large.digest


@pytest.mark.parametrize("name", [VIT, "vit_small_patch14_reg4_dinov2"])  # class token in the table, and not
def test_a_table_trained_at_another_size_is_resized_as_timm_does(name):
    patch = 16 if name == VIT else 14
    small, large = (make(name, layers=[1], image_size=(2 * patch * k, 3 * patch * k)) for k in (1, 2))
    other = make(name, layers=[1], image_size=(2 * patch, 2 * patch))
    table = torch.randn(small.model.pos_embed.shape, generator=torch.Generator().manual_seed(1))
    fitted = large.fit_tensor("model.pos_embed", table)
    with torch.no_grad():
        small.model.pos_embed.copy_(table)
    small.model.set_input_size(img_size=large.image_size)
    assert torch.equal(fitted, small.model.pos_embed)
    assert large.fit_tensor("model.pos_embed", fitted) is fitted
    weight = torch.zeros(3, 3)
    assert large.fit_tensor("model.blocks.0.attn.qkv.weight", weight) is weight
    with pytest.raises(ValueError, match=r"saved table of \d+ positions is no grid of the proportions 2x2"):
        other.fit_tensor("model.pos_embed", table)


def test_identity_follows_every_setting_that_changes_features():
    settings = [
        {},
        {"layers": [0, 1]},
        {"layers": [1], "final": True},
        {"layers": [1], "norm": True},
        {"image_size": 32},
        {"grid": 2},
        {"grid": 2, "reduce": "space_to_depth"},
        {"keep_prefix": True},
        {"seed": 4},
        {"mean": (0.4, 0.4, 0.4)},
        {"std": (0.4, 0.4, 0.4)},
        {"interpolation": "bilinear"},
        {"resize_mode": "pad"},
        {"resize_mode": "pad", "pad_value": (0, 0, 0)},
        {"resize_mode": "crop"},
        {"resize_mode": "crop", "crop_fraction": 1.0},
        {"balance": True},
    ]
    identities = [make(**{"layers": [1], **setting}).identity for setting in settings]
    assert len(set(identities)) == len(settings)
    assert make(layers=[1]).identity == identities[0]


def test_bf16_encoder_takes_float32_pixels():
    encoder = make(layers=[1]).to(torch.bfloat16)
    with torch.no_grad():
        assert encoder(pixels(encoder)).dtype == torch.bfloat16


def test_weights_file_in_timms_names_round_trips_and_position_embeddings_are_resized(tmp_path):
    big = make(image_size=160, layers=[5], norm=True)
    state = {key.removeprefix("model."): value for key, value in spread(big).state_dict().items()}
    save_file(state, tmp_path / "vit.safetensors")
    same = make(image_size=160, layers=[5], norm=True, weights=tmp_path / "vit.safetensors", seed=9)
    assert same.digest == big.digest
    small = make(layers=[5], norm=True, weights=tmp_path / "vit.safetensors")
    assert small.model.pos_embed.shape == (1, 17, 64)
    assert torch.equal(small.model.pos_embed[:, 0], big.model.pos_embed[:, 0])
    torch.save(state, tmp_path / "vit.pth")
    assert make(image_size=160, layers=[5], norm=True, weights=tmp_path / "vit.pth").digest == big.digest


def test_wrong_weights_are_named(tmp_path):
    state = {
        key.removeprefix("model."): value
        for key, value in make(image_size=160, layers=[2]).state_dict().items()
    }
    state["extra.weight"] = torch.zeros(1)
    state["cls_token"] = torch.zeros(1, 1, 7)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(
        ValueError, match=r"odd\.safetensors does not fit .*missing 38: .*unknown 1: .*extra.*\(1, 1, 7\)"
    ):
        make(weights=tmp_path / "odd.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no weights of the image encoder .*none\.safetensors"):
        make(weights=tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "vit_tiny_patch16_225"},
            "no model 'vit_tiny_patch16_225'; near matches: vit_tiny_patch16_224",
        ),
        (
            {"name": "vit_tiny_patch16_224.nothing"},
            "timm cannot make vit_tiny_patch16_224.nothing: Invalid pretrained tag",
        ),
        ({"layers": [3, 6]}, r"has layers 0 to 5 \(or -6 to -1\), but layers holds \[6\]"),
        ({"layers": [-7]}, r"layers holds \[-7\]"),
        ({"layers": [3, 1]}, r"must ascend without repeats, but got \[3, 1\]"),
        ({"layers": [5, -1]}, "must ascend without repeats"),
        ({"final": False}, "nothing to return"),
        ({"layers": [1], "dim": 384}, r"dim says 384, but layers \[1\] have width 64 together"),
        ({"image_size": 60}, r"image_size \(60, 60\) is no multiple of the 16x16 patches"),
        ({"image_size": (64, 0)}, "image_size must be a positive integer or a pair"),
        ({"name": "mixer_s32_224", "image_size": 64}, "mixer_s32_224 gives no features .*image_size"),
        ({"name": CNN, "keep_prefix": True}, "test_resnet has no prefix tokens"),
        (
            {"name": CNN, "layers": [2, 4], "grid": 3, "reduce": "space_to_depth"},
            r"8x8 map cannot be stacked onto grid \(3, 3\)",
        ),
        ({"reduce": "max"}, "reduce must be one of average, space_to_depth, but got 'max'"),
        ({"weights_format": "onnx"}, "weights_format must be one of timm, efficientnet_lite0, dinov2_onnx"),
        ({"interpolation": "cubic"}, "interpolation must be one of bilinear, bicubic, lanczos"),
        ({"resize_mode": "fit"}, "resize_mode must be one of squash, pad, crop"),
    ],
)
def test_wrong_settings_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_pixels_of_another_size_are_an_error():
    encoder = make(layers=[0])
    with pytest.raises(ValueError, match=r"expects pixels float\[M, 3, 64, 64\].*but got \(1, 3, 32, 64\)"):
        encoder(torch.zeros(1, 3, 32, 64))


def test_squash_is_pils_resize_then_mean_and_std():
    encoder = make(layers=[0], image_size=(32, 48), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2))
    image = picture(31, 77)
    resized = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC)).astype(np.float64) / 255
    expected = ((resized - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2]).transpose(2, 0, 1)
    ours = encoder.preprocess(image)
    assert ours.dtype == torch.float32 and ours.shape == (3, 32, 48)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)
    assert torch.equal(ours, encoder.preprocess(image))


def test_pad_keeps_proportions_and_fills_with_the_mean():
    encoder = make(layers=[0], resize_mode="pad", mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    wide = encoder.preprocess(Image.new("RGB", (100, 50), (255, 255, 255)))
    assert torch.equal(wide[:, 16:48], torch.full((3, 32, 64), 3.0))
    assert wide[:, :16].abs().max() == wide[:, 48:].abs().max() < 1e-6
    black = make(
        layers=[0], resize_mode="pad", pad_value=(0, 0, 0), mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)
    )
    assert black.preprocess(Image.new("RGB", (50, 100), (255, 255, 255)))[:, :, :16].max() == pytest.approx(
        -2
    )


def test_crop_takes_the_middle():
    encoder = make(layers=[0], resize_mode="crop", crop_fraction=0.5, mean=(0, 0, 0), std=(1, 1, 1))
    image = Image.new("RGB", (300, 200), (0, 0, 0))
    image.paste((255, 255, 255), (100, 50, 200, 150))
    # The filter may look one source pixel past the box, so the outermost pixels are a little darker.
    assert encoder.preprocess(image)[:, 2:-2, 2:-2].min() == 1
    assert encoder.preprocess(image).min() > 0.85
    image.paste((0, 0, 0), (100, 50, 104, 150))
    assert encoder.preprocess(image)[:, :, :2].max() < 0.5


@pytest.mark.parametrize("mode", ["squash", "pad", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (64, 64)])
def test_extreme_proportions_give_whole_pixels(mode, size):
    encoder = make(layers=[0], resize_mode=mode)
    pixels_3hw = encoder.preprocess(Image.new("RGB", size, (200, 10, 10)))
    assert pixels_3hw.shape == (3, 64, 64) and pixels_3hw.isfinite().all()


@pytest.mark.parametrize("image", [Image.new("RGBA", (4, 4)), "photo.png"])
def test_anything_but_an_rgb_picture_is_an_error(image):
    with pytest.raises(ValueError, match=r"expects a PIL picture in RGB, but got (mode RGBA|str)"):
        make(layers=[0]).preprocess(image)
