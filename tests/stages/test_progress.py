"""A live line on a terminal, JSON lines elsewhere."""

import io
import json
import os
import pty

from mm_llama.stages.progress import Progress


def record(step):
    return {
        "step": step,
        "loss": 1.23456789,
        "lr": 1e-3,
        "tokens_per_s": 1234.5,
        "samples_per_s": 56.78,
        "padding": 0.125,
        "data_wait": 0.031,
        "memory_mb": 1536.0,
    }


def test_elsewhere_every_nth_and_the_last_step_are_json_lines():
    stream = io.StringIO()
    with Progress("image_sft", 7, log_every=3, stream=stream) as progress:
        progress.note("begun")
        for step in range(1, 8):
            progress.show(record(step))
    first, *lines = stream.getvalue().splitlines()
    assert first == "begun"
    shown = [json.loads(line) for line in lines]
    assert [line["step"] for line in shown] == [3, 6, 7]
    assert shown[0]["stage"] == "image_sft" and shown[0]["loss"] == 1.23457
    assert all(line["eta_seconds"] >= 0 for line in shown)


def test_the_time_left_comes_from_the_steps_of_this_process(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("mm_llama.stages.progress.time.perf_counter", lambda: now[0])
    with Progress("stage", 100, start=60, stream=io.StringIO()) as progress:
        now[0] = 110.0
        assert progress.seconds_left(60) == 0.0
        assert progress.seconds_left(80) == 10.0  # 20 steps took 10 s, 20 are left


def read_all(leader: int) -> str:
    """What was written to the terminal, in as many pieces as the machine gives it."""
    pieces = []
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other end is closed and everything is read
            piece = b""
        if not piece:
            return b"".join(pieces).decode()
        pieces.append(piece)


def test_on_a_terminal_one_line_is_drawn_again_and_notes_stay():
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal, Progress("image_sft", 9, stream=terminal) as progress:
        progress._live.console.width = 160
        progress.note("continuing after step 3")
        for step in (4, 5):
            progress.show(record(step))
    shown = read_all(leader)
    os.close(leader)
    assert "continuing after step 3" in shown
    for part in ("image_sft", "step 5/9", "loss 1.2346", "lr 1.00e-03", "1,234 tokens/s", "56.8 samples/s"):
        assert part in shown
    assert "padding 12%" in shown and "data wait 3%" in shown and "1.5 GB" in shown and "left" in shown
    assert "{" not in shown


def test_rows_that_were_skipped_stand_in_the_line_by_cause():
    skipped = {"skipped": 3, "skipped.bad_image": 2, "skipped.too_long": 1}
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal, Progress("image_sft", 9, stream=terminal) as progress:
        progress._live.console.width = 160
        progress.show(record(4))
        progress.show(record(5) | skipped)
    shown = read_all(leader)
    os.close(leader)
    before, _, after = shown.partition("step 5/9")
    assert "skipped 3 (bad_image 2, too_long 1)" in after and "skipped" not in before
