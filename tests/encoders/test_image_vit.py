"""Our own tower: timm's numbers on timm's weights, tiles that keep to themselves, layers that insert as nothing."""

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from encoders.image_vit import TileViT
from encoders.image_vit_layers import resize_table
from encoders.image_vit_weights import from_timm
from encoders.timm_image import TimmImage

SMALL = {"tile_size": 32, "patch_size": 8, "width": 48, "num_layers": 4, "num_heads": 4, "mlp_width": 96}


def make(**options):
    """A small tower with norms, biases, places and gates away from their trivial values."""
    opened = options.pop("opened", True)
    tower = TileViT(**(SMALL | options)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if parameter.ndim == 1 and not name.endswith("gate"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        if opened and tower.across is not None:
            for name, parameter in tower.across.named_parameters():
                if name.endswith("gate"):
                    parameter.fill_(0.7)
                elif name in ("rows", "columns"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return tower.requires_grad_(False)


def tiles(M, r, c, s=32, seed=0):
    return torch.randn(M, r, c, 3, s, s, generator=torch.Generator().manual_seed(seed))


def timm_vit(name, seed=3, **options):
    torch.manual_seed(seed)
    model = timm.create_model(name, **options).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}, {"patch_size": 16, "width": 192, "num_heads": 3}),
        ("vit_small_patch14_dinov2", {"img_size": 56}, {"patch_size": 14, "width": 384, "num_heads": 6}),
        (
            "vit_tiny_patch16_224",
            {"img_size": 64, "class_token": False, "global_pool": "avg", "fc_norm": False},
            {"patch_size": 16, "width": 192, "num_heads": 3, "class_token": False},
        ),
    ],
)
def test_one_tile_equals_timm_on_its_weights(name, options, sizes, tmp_path):
    model = timm_vit(name, depth=4, **options)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "vit.safetensors"
    )
    size = options["img_size"]
    tower = TileViT(
        tile_size=size,
        num_layers=4,
        mlp_width=4 * sizes["width"],
        layers=[0, 2],
        weights=tmp_path / "vit.safetensors",
        weights_format="timm",
        **({"class_token": True} | sizes),
    ).eval()
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = tower(pixels[:, None, None])
        final, taken = model.forward_intermediates(
            pixels, indices=[0, 2], output_fmt="NLC", return_prefix_tokens=True
        )
    for number, tap in enumerate(taken):
        expected = torch.cat([tap[1], tap[0]], dim=1) if tower.trunk.class_token is not None else tap
        ours = features[..., number * tower.trunk.norm.weight.numel() :][..., : expected.shape[-1]]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features[..., -final.shape[-1] :], final, rtol=1e-5, atol=1e-5)


def test_what_a_timm_model_has_and_the_tower_lacks_is_named():
    state = timm_vit("vit_small_patch14_reg4_dinov2", img_size=56, depth=1).state_dict()
    with pytest.raises(ValueError, match=r"no place for 1 tensors of this timm model: \['reg_token'\]"):
        from_timm(state)


def test_exported_vit_gives_the_features_of_the_timm_encoder(asset_dir):
    (path,) = asset_dir("vit_s14_focus").rglob("*.onnx")
    reference = TimmImage(
        "vit_small_patch14_dinov2", layers=[5], final=True, keep_prefix=True, weights=path,
        weights_format="dinov2_onnx", image_size=112,
    ).eval()  # fmt: skip
    tower = TileViT(
        tile_size=112, width=384, num_layers=12, num_heads=6, mlp_width=1536, class_token=True, layers=[5],
        weights=path, weights_format="dinov2_onnx", max_tiles=4, num_global_layers=1,
    ).eval()  # fmt: skip
    pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels[:, None, None]), reference(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize(("r", "c"), [(1, 1), (2, 2), (1, 4), (3, 1)])
def test_shape_is_that_of_the_real_tiles(r, c, class_token):
    tower = make(max_tiles=4, num_global_layers=2, layers=[0, 2], class_token=class_token)
    features = tower(tiles(3, r, c))
    assert tower.dim == 3 * 48 and tower.tokens_per_tile == 16 + class_token
    assert features.shape == (3, r * c * tower.tokens_per_tile, tower.dim)


def test_the_papers_token_count():
    with torch.device("meta"):
        tower = TileViT(tile_size=336, max_tiles=4, class_token=True)
    assert 4 * tower.tokens_per_tile == 2308


def test_batched_equals_single():
    tower = make(max_tiles=4, num_global_layers=2, layers=[0, 2], class_token=True)
    pictures = tiles(3, 2, 2)
    together = tower(pictures)
    for number in range(3):
        torch.testing.assert_close(
            together[number], tower(pictures[number : number + 1])[0], rtol=1e-5, atol=1e-5
        )


def test_before_the_global_layers_a_tile_does_not_depend_on_others_and_after_them_it_does():
    tower = make(max_tiles=4, num_global_layers=1, layers=[3])
    before, pictures = tower(tiles(2, 2, 2)), tiles(2, 2, 2)
    pictures[0, 1, 0] += 1  # the third tile of the first picture
    after = tower(pictures)
    S, W = tower.tokens_per_tile, 48
    same = [
        tile for tile in range(4) if torch.equal(before[0, tile * S :][:S, :W], after[0, tile * S :][:S, :W])
    ]
    assert same == [0, 1, 3]
    assert all(
        not torch.equal(before[0, tile * S :][:S, W:], after[0, tile * S :][:S, W:]) for tile in range(4)
    )
    assert torch.equal(before[1], after[1])  # another picture, never


def test_tokens_run_tile_by_tile_row_by_row():
    tower, alone = make(max_tiles=4, layers=[1]), make(layers=[1])
    alone.trunk.load_state_dict(tower.trunk.state_dict())
    tower.across.rows.zero_()
    tower.across.columns.zero_()
    pictures = tiles(1, 2, 2)
    features = tower(pictures)
    for number, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        expected = alone(pictures[:, row : row + 1, column : column + 1])
        torch.testing.assert_close(features[:, number * 16 :][:, :16], expected, rtol=1e-5, atol=1e-5)
    # Within a tile the patches run row by row too: only the patch that changed changes before attention mixes.
    changed = pictures.clone()
    changed[0, 0, 0, :, 8:16, 24:] += 1
    differs = (tower.trunk.embed(changed) != tower.trunk.embed(pictures)).any(-1)
    assert differs.nonzero().tolist() == [[0, 1 * 4 + 3]]


def test_each_place_in_the_grid_is_told_from_the_others():
    tower = make(max_tiles=4, layers=[1])
    same = tiles(1, 1, 1).expand(1, 2, 2, 3, 32, 32)
    features = tower(same)[0].unflatten(0, (4, 16))
    assert all(not torch.allclose(features[a], features[b], atol=1e-3) for a in range(4) for b in range(a))


def test_inserting_places_and_global_layers_is_an_exact_identity():
    plain = make(layers=[1, 2], class_token=True)
    grown = make(layers=[1, 2], class_token=True, max_tiles=4, num_global_layers=3, opened=False)
    grown.trunk.load_state_dict(plain.trunk.state_dict())
    assert torch.equal(grown(tiles(3, 1, 1)), plain(tiles(3, 1, 1)))
    assert torch.equal(
        grown(tiles(1, 2, 2))[0], plain(tiles(1, 2, 2).reshape(4, 1, 1, 3, 32, 32)).flatten(0, 1)
    )


def test_closed_gates_let_gradients_through_to_open_them():
    tower = make(max_tiles=4, num_global_layers=2, opened=False).requires_grad_(True)
    tower(tiles(2, 2, 1)).square().mean().backward()
    moved = {name for name, parameter in tower.across.named_parameters() if parameter.grad.abs().sum() > 0}
    gates = {f"blocks.{n}.{kind}_gate" for n in range(2) for kind in ("attention", "feed_forward")}
    assert moved == gates | {"rows", "columns"}


def test_positions_are_resized_as_published_tables_are_and_left_alone_at_equal_size():
    tower = make()
    before = tower.trunk.positions.clone()
    tower.resize_positions(32)
    assert torch.equal(tower.trunk.positions, before)
    assert resize_table(before, 4) is before
    tower.resize_positions(48)
    map_1Whw = before.T.reshape(1, 48, 4, 4)
    expected = F.interpolate(map_1Whw, size=(6, 6), mode="bicubic", align_corners=False).flatten(2)[0].T
    assert torch.equal(tower.trunk.positions, expected)
    assert tower(tiles(1, 1, 1, s=48)).shape == (1, 36, 48) and not tower.trunk.positions.requires_grad


def test_one_set_of_weights_has_one_digest_at_every_tile_size_until_its_table_changes(tmp_path):
    save_file(make().state_dict(), tmp_path / "tower.safetensors")
    small, large = (
        TileViT(**(SMALL | {"tile_size": size}), weights=tmp_path / "tower.safetensors") for size in (32, 64)
    )
    assert small.digest == large.digest and small.identity != large.identity
    small.resize_positions(64)
    assert small.digest == large.digest and small.identity == large.identity
    small.resize_positions(32)
    assert torch.equal(small.trunk.positions, make().trunk.positions)
    for tower in (large, small):
        tower.resize_positions(48)
        before = tower.digest
        with torch.no_grad():
            tower.trunk.positions[0, 0] += 1
        assert tower.digest != before


def test_own_files_load_at_another_tile_size_with_more_tiles_and_layers(tmp_path):
    plain = make(layers=[1])
    save_file(plain.state_dict(), tmp_path / "tower.safetensors")
    grown = TileViT(
        **(SMALL | {"tile_size": 64}),
        max_tiles=4,
        num_global_layers=1,
        layers=[1],
        weights=tmp_path / "tower.safetensors",
    )
    assert torch.equal(grown.trunk.positions, resize_table(plain.trunk.positions, 8))
    others = [name for name in plain.trunk.state_dict() if name != "positions"]
    assert all(torch.equal(grown.trunk.state_dict()[name], plain.trunk.state_dict()[name]) for name in others)
    whole = make(layers=[1], max_tiles=4, num_global_layers=1)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    again = TileViT(
        **SMALL, max_tiles=4, num_global_layers=1, layers=[1], weights=tmp_path / "whole.safetensors"
    )
    assert torch.equal(again(tiles(1, 2, 1)), whole(tiles(1, 2, 1)))


def test_a_run_folder_gives_the_encoder_of_its_newest_checkpoint(tmp_path):
    for step, seed in ((9, 1), (10, 2)):
        folder = tmp_path / f"run/checkpoints/step_{step:08d}"
        folder.mkdir(parents=True)
        state = {
            f"modality.image.encoder.{k}": v for k, v in TileViT(**SMALL, seed=seed).state_dict().items()
        }
        save_file(state | {"modality.image.adapter.w": torch.ones(1)}, folder / "adapter.safetensors")
    newest = TileViT(**SMALL, weights=tmp_path / "run")
    older = TileViT(**SMALL, weights=tmp_path / "run/checkpoints/step_00000009")
    assert (newest.digest, older.digest) == (TileViT(**SMALL, seed=2).digest, TileViT(**SMALL, seed=1).digest)


def wrong(tmp_path, change):
    state = TileViT(**SMALL).state_dict()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    return TileViT(**SMALL, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("trunk.norm.bias"), r"lacks 1: trunk.norm.bias"),
        (lambda s: s.update({"trunk.class_token": torch.ones(48)}), r"has unknown 1: trunk.class_token"),
        (lambda s: s.update({"trunk.norm.bias": torch.ones(7)}), r"trunk.norm.bias is \(7,\), here \(48,\)"),
        (lambda s: s.update({"trunk.positions": torch.ones(15, 48)}), r"15 positions is no square grid"),
        (lambda s: s["trunk.norm.bias"].fill_(float("nan")), r"not finite in trunk.norm.bias"),
        (lambda s: s.update({"across.rows": torch.ones(4, 48)}), r"has unknown 1: across.rows"),
    ],
)
def test_weights_that_do_not_fit_say_why(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        wrong(tmp_path, change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 30}, r"tile_size is 30, which is no multiple of patch_size=8"),
        ({"num_heads": 5}, r"width is 48, which num_heads=5 does not divide"),
        ({"layers": [2, 1]}, r"layers must ascend without repeats from 0 to 3, got \[2, 1\]"),
        ({"layers": [4]}, r"layers must ascend .* got \[4\]"),
        ({"max_tiles": 0}, r"max_tiles must be at least 1, got 0"),
        (
            {"dim": 48, "layers": [1]},
            r"dim says 48, but layers \[1\] and the final one, of width 48, give 96",
        ),
        ({"weights": "nowhere.safetensors"}, r"no weights of the image tower at nowhere.safetensors"),
        ({"weights": ".", "weights_format": "pickle"}, r"weights_format must be one of own, timm"),
    ],
)
def test_a_wrong_setting_names_its_key(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TileViT(**(SMALL | options))


def test_a_folder_without_checkpoint_is_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        TileViT(**SMALL, weights=tmp_path)


@pytest.mark.parametrize("shape", [(1, 1, 1, 3, 40, 40), (1, 3, 2, 3, 32, 32), (1, 3, 32, 32)])
def test_wrong_tiles_are_refused(shape):
    with pytest.raises(ValueError, match=r"expects tiles float\[M, r, c, 3, 32, 32\].*at most 4 a picture"):
        make(max_tiles=4)(torch.zeros(shape))


def test_preprocess_keeps_proportions_up_to_max_tiles():
    picture = Image.new("RGB", (60, 30), (255, 0, 0))
    wide = make(max_tiles=4, mean=[0.5] * 3, std=[0.25] * 3).preprocess(picture)
    assert wide.shape == (1, 2, 3, 32, 32)
    assert wide[0, 0, :, 0, 0].tolist() == [2, -2, -2] and wide[0, 1, 0, 31, 31] == -2  # red, black padding
    assert make().preprocess(picture).shape == (1, 1, 3, 32, 32)


def test_identity_follows_weights_and_settings_and_survives_a_cast():
    towers = [make(), make(layers=[1]), make(max_tiles=2), make(mean=[0.4] * 3), make(norm_eps=1e-5)]
    assert len({tower.identity for tower in towers}) == len(towers)
    tower = make()
    digest, identity = tower.digest, tower.identity
    assert (make().digest, make().identity) == (digest, identity)
    tower.to(torch.bfloat16)
    assert tower.digest == digest
    tower.trunk.norm.bias.add_(1)
    assert tower.digest != digest and tower.identity != identity
    other_heads, other_size = make(num_heads=2), make()
    other_size.tile_size = 64
    assert other_heads.digest == digest and other_heads.identity != identity != other_size.identity


def test_bfloat16_follows_float32():
    tower = make(max_tiles=4, num_global_layers=2, layers=[1], class_token=True)
    exact = tower(tiles(2, 1, 2))
    half = tower(tiles(2, 1, 2).to(torch.bfloat16))  # masters stay float32
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.06 * exact.abs().max()


def test_the_papers_tower_has_the_papers_size():
    with torch.device("meta"):
        tower = TileViT(layers=[3, 7, 15, 23, 30], max_tiles=4, num_global_layers=8, class_token=True)
    trunk, whole = (sum(p.numel() for p in part.parameters()) for part in (tower.trunk, tower))
    assert tower.dim == 7680
    assert trunk == pytest.approx(630e6, rel=0.003)
    # 40 layers and the projection to 4,096; the released tower's tables for every tile make up the rest of 850M.
    assert whole + 7680 * 4096 == pytest.approx(850e6, rel=0.04)
    assert whole - trunk == pytest.approx(157.4e6, rel=0.001)
