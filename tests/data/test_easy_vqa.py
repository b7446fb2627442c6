"""easy-VQA: the splits, the types of all 107 questions, majority answers, the JSONL it becomes."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from mm_llama.data.easy_vqa import (
    SHORT_ANSWER,
    TYPES,
    VQA,
    holdout_images,
    majority,
    question_type,
    read_split,
    write_jsonl,
)

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
THINGS = (*SHAPES, *(f"{color} shape" for color in COLORS))

QUESTIONS = {
    "shape": [
        "what shape does the image contain?",
        "what shape is in the image?",
        "what shape is present?",
        *(f"what is the {color} shape?" for color in COLORS),
    ],
    "color": [
        form.format(thing)
        for form in ("what color is the {}?", "what is the color of the {}?")
        for thing in (*SHAPES, "shape")
    ],
    "yesno": [
        form.format(thing)
        for form in (
            "does the image contain a {}?",
            "is a {} present?",
            "is there a {}?",
            "is there a {} in the image?",
        )
        for thing in THINGS
    ],
    "yesno_negated": [
        form.format(thing)
        for form in (
            "does the image not contain a {}?",
            "is no {} present?",
            "is there not a {}?",
            "is there not a {} in the image?",
        )
        for thing in THINGS
    ],
}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def root(asset_dir) -> Path:
    return asset_dir("easy_vqa")


@pytest.fixture(scope="module")
def small_root(root, tmp_path_factory) -> Path:
    """The real data, cut to the questions about eight training and three test pictures."""
    small = tmp_path_factory.mktemp("easy_vqa")
    data = next(path.parent for path in root.rglob("answers.txt"))
    for split, count in (("train", 8), ("test", 3)):
        images = small / "easy_vqa" / "data" / split / "images"
        images.mkdir(parents=True)
        rows = json.loads((data / split / "questions.json").read_text())
        (images.parent / "questions.json").write_text(json.dumps([row for row in rows if row[2] < count]))
        for number in range(count):
            shutil.copy(data / split / "images" / f"{number}.png", images)
    return small


def test_every_question_string_has_its_type(root):
    rows = [row for split in ("train", "holdout", "test") for row in read_split(root, split)]
    found = {name: {row.question for row in rows if row.type == name} for name in TYPES}
    assert found == {name: set(questions) for name, questions in QUESTIONS.items()}
    assert sum(map(len, found.values())) == 107


def test_yes_and_no_are_the_answers_to_exactly_the_yesno_types(root):
    for row in read_split(root, "train"):
        expected = {"shape": SHAPES, "color": COLORS}.get(row.type, ("yes", "no"))
        assert row.answer in expected, row


@pytest.mark.parametrize("question", ["who is there?", "", "name the shape"])
def test_a_question_of_another_form_is_refused(question):
    with pytest.raises(ValueError, match="not an easy-VQA question"):
        question_type(question)


def test_splits_have_the_published_sizes_and_share_no_picture(root):
    splits = {split: read_split(root, split) for split in ("train", "holdout", "test")}
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 34779,
        "holdout": 3796,
        "test": 9673,
    }
    pictures = {split: {row.image for row in rows} for split, rows in splits.items()}
    assert {split: len(images) for split, images in pictures.items()} == {
        "train": 3600,
        "holdout": 400,
        "test": 1000,
    }
    assert len(set.union(*pictures.values())) == 5000


def test_the_holdout_is_fixed_by_its_seed_and_not_by_the_order_of_the_pictures():
    held = holdout_images(range(4000), num_holdout=400, seed=0)
    assert held == holdout_images(reversed(range(4000)), num_holdout=400, seed=0)
    assert sorted(held)[:6] == [15, 36, 44, 46, 76, 87]
    assert held != holdout_images(range(4000), num_holdout=400, seed=1)


def test_a_holdout_of_everything_and_an_unknown_split_are_refused(root):
    with pytest.raises(ValueError, match="num_holdout must lie between 0 and 3, not 4"):
        holdout_images(range(4), num_holdout=4, seed=0)
    with pytest.raises(ValueError, match="splits train, holdout, test, not 'valid'"):
        read_split(root, "valid")


def test_majority_answers_are_counted_by_question_type_and_over_all():
    def ask(question: str, answer: str) -> VQA:
        return VQA(question, answer, 0, Path("0.png"))

    result = majority(
        [
            ask("is there a circle?", "no"),
            ask("is there a circle?", "no"),
            ask("is there a circle?", "yes"),
            ask("is there a teal shape?", "yes"),
            ask("is there a teal shape?", "yes"),
            ask("is there a teal shape?", "yes"),
            ask("what shape is present?", "triangle"),
            ask("what shape is present?", "circle"),
        ]
    )
    assert result.by_question == {
        "is there a circle?": "no",
        "is there a teal shape?": "yes",
        "what shape is present?": "circle",
    }
    assert result.by_type == {"shape": "circle", "yesno": "yes"}
    assert result.overall == "yes"


def test_majority_answers_of_the_real_training_questions(root):
    train, test = read_split(root, "train"), read_split(root, "test")
    answers = majority(train)
    right = Counter(row.type for row in test if answers.by_question[row.question] == row.answer)
    count = Counter(row.type for row in test)
    assert len(answers.by_question) == 107
    assert {name: round(right[name] / count[name], 3) for name in TYPES} == {
        "shape": 0.338,
        "color": 0.117,
        "yesno": 0.823,
        "yesno_negated": 0.828,
    }
    assert round(right.total() / count.total(), 3) == 0.668


def test_jsonl_rows_hold_picture_question_answer_and_extras(small_root, tmp_path):
    paths = write_jsonl(small_root, tmp_path / "out", num_holdout=2)
    rows = {split: read(path) for split, path in paths.items()}
    for split in paths:
        expected = read_split(small_root, split, num_holdout=2)
        assert [row["extra"]["question"] for row in rows[split]] == [row.question for row in expected]
        for row, source in zip(rows[split], expected, strict=True):
            user, assistant = row["messages"]
            image, text = user["content"]
            assert user["role"] == "user" and assistant == {"role": "assistant", "content": source.answer}
            assert text == {"type": "text", "text": source.question}
            assert (tmp_path / "out" / image["path"]).read_bytes() == source.image.read_bytes()
            assert row["extra"] == {
                "question": source.question,
                "answer": source.answer,
                "type": source.type,
                "image_id": source.image_id,
            }


def test_the_template_changes_the_text_and_not_the_extras(small_root, tmp_path):
    path = write_jsonl(small_root, tmp_path / "out", template=SHORT_ANSWER, num_holdout=2)["test"]
    row = read(path)[0]
    question = row["extra"]["question"]
    assert row["messages"][0]["content"][1]["text"] == (
        f"Answer the question using a single word or phrase. {question}"
    )
    with pytest.raises(ValueError, match="must contain '{question}'"):
        write_jsonl(small_root, tmp_path / "other", template="Answer.")


def test_a_made_folder_is_reused_for_the_same_options_and_refused_for_others(small_root, tmp_path):
    out = tmp_path / "deep" / "out"
    path = write_jsonl(small_root, out, num_holdout=2)["train"]
    before = path.stat().st_ino
    assert write_jsonl(small_root, out, num_holdout=2)["train"].stat().st_ino == before
    with pytest.raises(FileExistsError, match=r"num_holdout=2.*not easy_vqa .*num_holdout=3.*delete it"):
        write_jsonl(small_root, out, num_holdout=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="holds other files"):
        write_jsonl(small_root, tmp_path / "mine", num_holdout=2)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_failed_conversion_leaves_nothing_behind(small_root, tmp_path):
    broken = shutil.copytree(small_root, tmp_path / "broken")
    (broken / "easy_vqa" / "data" / "test" / "images" / "1.png").unlink()
    (tmp_path / "work").mkdir()
    with pytest.raises(FileNotFoundError):
        write_jsonl(broken, tmp_path / "work" / "out", num_holdout=2)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_folder_without_the_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no easy-VQA data"):
        read_split(tmp_path, "train")
