"""The page of pairs holds what it plays, asks for nothing from elsewhere, and cannot be broken by a text."""

from __future__ import annotations

import base64
import io
import json
import re
import wave
from pathlib import Path

import pytest
import torch

from mm_llama.report.preference import write_preference_page


def test_a_page_holds_its_sounds_and_its_texts(tmp_path: Path) -> None:
    first, second = torch.linspace(-1, 1, 480), torch.zeros(960)
    text = "Is 1 < 2? </script><script>alert(1)</script>"
    path = write_preference_page(
        tmp_path / "new" / "page.html", {"a": "ours", "b": "theirs"}, [(text, first, second)], 24_000
    )
    page = path.read_text("utf-8")
    assert page.count("</script>") == 2 and not re.search(r"https?://", page) and "{{" not in page
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    found = json.loads(data)
    (pair,) = found["pairs"]
    assert pair["text"] == text and found["names"] == {"a": "ours", "b": "theirs"}
    with wave.open(io.BytesIO(base64.b64decode(pair["a"]))) as file:
        assert (file.getframerate(), file.getnframes()) == (24_000, 480)
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="no pairs"):
        write_preference_page(tmp_path / "b.html", {"a": "", "b": ""}, [], 24_000)
