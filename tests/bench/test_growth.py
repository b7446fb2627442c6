"""`mm-llama bench growth`: points of processes of their own, and what a line says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm_llama.bench.growth import _fits, _layout, _text_point
from mm_llama.cli import main as cli
from mm_llama.core.llama import Llama
from tests.promises.material import CONFIG

TINY = ["--core", "tiny", "--image", "tiny", "--video", "tiny", "--frames", "4"]


def test_pictures_and_clips_are_measured_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    path, plot = tmp_path / "growth.json", tmp_path / "growth.png"
    options = [
        "--cases",
        "turns,run,clips,answer",
        "--counts",
        "1,3",
        "--clips",
        "1,2",
        "--answer",
        "1,3",
        "--json",
        str(path),
        "--plot",
        str(plot),
    ]
    assert cli(["bench", "growth", *TINY, *options]) == 0
    facts = json.loads(path.read_text("utf-8"))
    assert set(facts["cases"]) == {"turns", "run", "clips", "answer"}
    for name, case in facts["cases"].items():
        counts = [1, 2] if name == "clips" else [1, 3]
        assert [point["count"] for point in case["points"]] == counts
        first, last = case["points"]
        # Keys and values are held once for each medium, no more.
        if name != "answer":
            assert last["media_bytes"] == counts[1] * first["media_bytes"] > 0
        assert all(
            (point["attach_s"] > 0) == (name != "answer") and point["prefill_s"] > 0
            for point in case["points"]
        )
        assert case["r2_media"] == pytest.approx(1)
    assert plot.read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 2
    assert "R² of a line" in capsys.readouterr().out


def test_a_line_fits_what_is_linear_and_not_what_is_quadratic() -> None:
    def points(bytes_of: object) -> list[dict[str, float]]:
        return [
            {
                "count": n,
                "attach_s": 0.5 * n,
                "prefill_s": 0.1,
                "media_bytes": 10 * n,
                "extra_bytes": bytes_of(n),
            }  # type: ignore[operator]
            for n in (1, 2, 4, 8, 16)
        ]

    linear, square = _fits(points(lambda n: 5 * n)), _fits(points(lambda n: n * n))
    assert linear["r2_seconds"] == linear["r2_bytes"] == pytest.approx(1)
    assert square["r2_bytes"] < 0.95
    assert linear["per_item_bytes"] == pytest.approx(1) and square["per_item_bytes"] == pytest.approx(16)
    assert linear["per_item_seconds"] == pytest.approx((8.1 / 16) / 0.6)


def test_layouts_put_each_medium_where_the_case_says() -> None:
    assert _layout("turns", 3) == ([0, 0, 0], [2, 14, 26], 38)
    assert _layout("run", 3) == ([0, 0, 0], [2, 3, 4], 17)
    assert _layout("clips", 3) == ([0, 1, 2], [2, 2, 2], 14)


def test_text_points_read_or_make_what_they_count() -> None:
    core = Llama(CONFIG)
    core.init_weights(0)
    seen: list[tuple[int, int]] = []
    core.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    found = {
        case: _text_point(case, count, core) for case, count in (("rows", 3), ("tokens", 40), ("answer", 5))
    }
    read, made = [(3, 64), (1, 40), (1, 64)], [[], [], [(1, 1)] * 5]
    expected = [
        shape for one, steps in zip(read, made, strict=True) for shape in ([(1, 2)] + [one, *steps] * 3)
    ]
    assert seen == expected
    slot = 2 * 2 * CONFIG.num_layers * CONFIG.num_kv_heads * CONFIG.head_dim * 2
    for case, positions in (("rows", 192), ("tokens", 40), ("answer", 69)):
        assert found[case]["positions"] == positions and found[case]["media_bytes"] == positions * slot
        assert found[case]["prefill_s"] > 0


def test_counts_rise(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["bench", "growth", *TINY, "--counts", "4,2"]) == 2
    assert "--counts takes rising numbers, not 4,2" in capsys.readouterr().err
    assert cli(["bench", "growth", *TINY, "--cases", "turns,cats"]) == 2
    assert "--cases holds 'cats', expected some of turns, run" in capsys.readouterr().err
