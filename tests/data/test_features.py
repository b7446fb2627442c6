"""Cached features: exact, mapped, whole or absent on disk, and never those of another encoder."""

import hashlib
import json
import resource
import time

import pytest
import torch

from mm_llama.data.features import FeatureCache
from mm_llama.data.samples import MediaRef


def refs(count: int) -> list[MediaRef]:
    return [MediaRef("image", 0, f"{i}.png", f"sha256:{i:064x}") for i in range(count)]


def load(ref: MediaRef) -> torch.Tensor:
    """Every fifth picture is wider."""
    number = int(ref.source.removesuffix(".png"))
    return torch.full((3, 2, 4 if number % 5 == 0 else 2), float(number))


class Encoder:
    """Three tokens of width 2: mean, and mean / 7, of the pixels; counts what it encodes."""

    def __init__(self) -> None:
        self.num_encoded = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.num_encoded += len(pixels)
        mean = pixels.mean((1, 2, 3))
        return torch.stack([mean, mean / 7], -1)[:, None].expand(-1, 3, -1)


def expected(ref: MediaRef, dtype: torch.dtype) -> torch.Tensor:
    return Encoder()(load(ref)[None])[0].to(dtype)


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_features_come_back_as_the_encoder_gave_them(tmp_path, dtype, torch_dtype):
    cache = FeatureCache(tmp_path, "sha256:e", "p", dtype=dtype)
    assert cache.build(refs(23), load, Encoder(), batch_size=4, shard_bytes=60) == 23
    for opened in (cache, FeatureCache(tmp_path, "sha256:e", "p", dtype=dtype)):
        assert len(opened) == 23
        for ref in refs(23):
            assert ref.key in opened
            assert opened(ref).dtype == torch_dtype
            assert torch.equal(opened(ref), expected(ref, torch_dtype))
    assert len(list(cache.folder.glob("*.safetensors"))) > 2


def test_a_second_build_encodes_only_what_is_new(tmp_path):
    encoder = Encoder()
    cache = FeatureCache(tmp_path, "e", "p")
    cache.build(refs(6), load, encoder)
    assert FeatureCache(tmp_path, "e", "p").build(refs(6), load, encoder) == 0
    assert encoder.num_encoded == 6
    assert FeatureCache(tmp_path, "e", "p").build([*refs(9), *refs(9)], load, encoder) == 3
    assert encoder.num_encoded == 9


def test_another_encoder_preprocessing_or_dtype_never_sees_these_features(tmp_path):
    FeatureCache(tmp_path, "e", "p").build(refs(3), load, Encoder())
    for other in (("f", "p", "bfloat16"), ("e", "q", "bfloat16"), ("e", "p", "float32")):
        cache = FeatureCache(tmp_path, other[0], other[1], dtype=other[2])
        assert len(cache) == 0
        with pytest.raises(KeyError, match="no cached features for sha256:0.*build the cache"):
            cache(refs(1)[0])


def test_a_shard_moved_in_from_another_encoder_is_refused(tmp_path):
    mine, other = FeatureCache(tmp_path, "mine", "p"), FeatureCache(tmp_path, "other", "p")
    other.build(refs(2), load, Encoder())
    mine.folder.mkdir(parents=True)
    (shard,) = other.folder.iterdir()
    shard.rename(mine.folder / shard.name)
    with pytest.raises(
        ValueError, match=r"are for .*'encoder': 'other'.*expected .*'encoder': 'mine'.*delete"
    ):
        FeatureCache(tmp_path, "mine", "p")


def test_a_shard_cut_short_is_named(tmp_path):
    cache = FeatureCache(tmp_path, "e", "p")
    cache.build(refs(2), load, Encoder())
    (shard,) = cache.folder.iterdir()
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"{shard.name} cannot be read .*delete the file and build again"):
        FeatureCache(tmp_path, "e", "p")


def test_an_interrupted_build_keeps_what_it_encoded_and_goes_on(tmp_path):
    class Interrupted(Encoder):
        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            if self.num_encoded >= 12:
                raise KeyboardInterrupt
            return super().__call__(pixels)

    wide = [MediaRef("image", 0, f"{5 * i}.png", f"k{i}") for i in range(20)]
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path, "e", "p").build(wide, load, Interrupted(), batch_size=4, shard_bytes=40)
    cache = FeatureCache(tmp_path, "e", "p")
    kept = len(cache)
    assert kept == 12  # shards of four; what was encoded by then is written too
    assert all(path.suffix == ".safetensors" for path in cache.folder.iterdir())
    assert cache.build(wide, load, Encoder(), batch_size=4) == 20 - kept
    assert all(torch.equal(cache(ref), expected(ref, torch.bfloat16)) for ref in wide)


def test_a_write_that_fails_leaves_no_partial_file(tmp_path):
    cache = FeatureCache(tmp_path, "e", "p")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write cached features"):
            cache.build(refs(4), load, lambda pixels: torch.ones(len(pixels), 49, 1280))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(cache.folder.iterdir()) == []
    assert len(cache) == 0


def test_a_file_that_cannot_be_put_in_place_leaves_no_partial_one(tmp_path):
    cache = FeatureCache(tmp_path, "e", "p")
    shard = (
        hashlib.sha256(json.dumps([ref.key for ref in refs(1)]).encode()).hexdigest()[:16] + ".safetensors"
    )
    (cache.folder / shard / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="cannot write cached features"):
        cache.build(refs(1), load, Encoder())
    assert [path.name for path in cache.folder.iterdir()] == [shard]


def test_pictures_with_another_number_of_tokens_get_shards_of_their_own(tmp_path):
    def columns(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((1, 2))[..., None].expand(-1, -1, 2)

    cache = FeatureCache(tmp_path, "e", "p")
    cache.build(refs(12), load, columns, batch_size=3)
    assert {tuple(cache(ref).shape) for ref in refs(12)} == {(4, 2), (2, 2)}
    for ref in refs(12):
        assert torch.equal(cache(ref), columns(load(ref)[None])[0].bfloat16())


def test_values_that_are_not_finite_are_refused_with_the_picture_named(tmp_path):
    def broken(pixels: torch.Tensor) -> torch.Tensor:
        features = Encoder()(pixels).clone()
        features[pixels[:, 0, 0, 0] == 2] = float("nan")
        return features

    cache = FeatureCache(tmp_path, "e", "p")
    with pytest.raises(ValueError, match=r"not finite for image 2\.png"):
        cache.build(refs(4), load, broken)
    # What was finite before it, a picture of another size, is kept.
    kept = FeatureCache(tmp_path, "e", "p")
    assert len(kept) == 1 and refs(4)[0].key in kept


def test_features_of_another_form_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gave features of shapes \[\[6\]\] for 1 media, not \[n, N, E\]"):
        FeatureCache(tmp_path, "e", "p").build(refs(1), load, lambda pixels: Encoder()(pixels).flatten(1))


def test_a_medium_that_cannot_be_read_raises_or_is_noted(tmp_path):
    def broken(ref: MediaRef) -> torch.Tensor:
        if ref.source == "2.png":
            raise ValueError("2.png is cut short")
        return load(ref)

    with pytest.raises(ValueError, match=r"2\.png is cut short"):
        FeatureCache(tmp_path / "raises", "e", "p").build(refs(4), broken, Encoder())
    cache = FeatureCache(tmp_path / "noted", "e", "p")
    assert cache.build(refs(4), broken, Encoder(), on_error="skip") == 3
    assert cache.failed == {refs(4)[2].key: "2.png is cut short"}
    with pytest.raises(KeyError, match=r"2\.png is cut short"):
        cache(refs(4)[2])
    with pytest.raises(ValueError, match="on_error must be 'error' or 'skip', not 'pass'"):
        cache.build(refs(1), load, Encoder(), on_error="pass")


def test_progress_counts_up_to_all(tmp_path):
    calls = []
    FeatureCache(tmp_path, "e", "p").build(
        [MediaRef("image", 0, "1.png", f"k{i}") for i in range(7)],
        load,
        Encoder(),
        batch_size=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(3, 7), (6, 7), (7, 7)]


def test_another_dtype_than_the_two_kept_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bfloat16 or float32, not 'float16'"):
        FeatureCache(tmp_path, "e", "p", dtype="float16")


def test_opening_maps_the_file_and_looking_up_takes_microseconds(tmp_path):
    many = [MediaRef("image", 0, "1.png", f"k{i}") for i in range(2000)]
    FeatureCache(tmp_path, "e", "p").build(
        many, load, lambda pixels: torch.ones(len(pixels), 49, 128), batch_size=500
    )
    cache = FeatureCache(tmp_path, "e", "p")
    best = min(_seconds(lambda: [cache(ref) for ref in many]) for _ in range(3))
    assert best / len(many) < 50e-6
    assert _mapped(cache.folder) == {path.name for path in cache.folder.iterdir()}


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _mapped(folder) -> set[str]:
    with open("/proc/self/maps") as file:
        return {line.rsplit("/", 1)[1].strip() for line in file if str(folder) in line}
