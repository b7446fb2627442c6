"""Data that packages carry, narrowed by type and answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mm_llama.data import recipes


def test_easy_vqa_narrows_to_types_and_answers(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    root = asset_dir("easy_vqa")
    whole = recipes.easy_vqa(root, tmp_path, "holdout")
    some = recipes.easy_vqa(root, tmp_path, "holdout", types=["yesno"], answers=["yes"])
    assert 0 < len(some) < len(whole)
    for index in range(0, len(some), 37):
        row = some.row(index)
        assert row.extra["type"] == "yesno" and row.extra["answer"] == "yes"
        assert some.name_of(index) == row.source
    assert some.digest != whole.digest
    with pytest.raises(ValueError, match="no question type 'colour'.*types are shape, color"):
        recipes.easy_vqa(root, tmp_path, "holdout", types=["colour"])
    with pytest.raises(ValueError, match=r"has an answer among \['purple'\]"):
        recipes.easy_vqa(root, tmp_path, "holdout", answers=["purple"])
    with pytest.raises(ValueError, match="has no split 'dev'"):
        recipes.easy_vqa(root, tmp_path, "dev")
