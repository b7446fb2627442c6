"""A released checkpoint in use: loaded by its path, asked about pictures, lent to a plain core, trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mm_llama import load
from mm_llama.batch import Batch, Media
from mm_llama.build import build_model, compose_config, resolve
from mm_llama.cli import main
from mm_llama.core.chat import Placeholder, messages_from_dicts
from mm_llama.core.digest import digest_tensors
from mm_llama.core.export import export_hf
from mm_llama.core.weights import load_core
from mm_llama.generation.engine import generate
from mm_llama.generation.prompts import make_batch
from mm_llama.model import MultimodalLlama
from mm_llama.stages.loop import train
from mm_llama.testing.bytes_tokenizer import BytesTokenizer
from tests.released.material import PICTURES, TILE, WIDTH, picture, states_before, transformers_model
from tests.released.test_reference import first_of, inputs_of

VOCAB = BytesTokenizer().vocab_size
TEMPLATE = "<|start_header_id|> (only its markers are looked at)"


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A transformers model over bytes, pictures tapped as the released models tap them."""
    return states_before(transformers_model(seed=5, vocab_size=VOCAB))


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that transformers wrote of it."""
    path = tmp_path_factory.mktemp("whole") / "Bytes-Vision-Instruct"
    theirs.save_pretrained(path)
    BytesTokenizer().save(path, chat_template=TEMPLATE)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "noise.png"
    picture((2, 2)).save(path)
    return path


def about(photo: Path, question: str = "What?") -> list[dict[str, Any]]:
    content = [{"type": "image", "path": str(photo)}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def test_a_picture_and_a_system_prompt_are_answered(folder: Path, photo: Path) -> None:
    model = load(folder, dtype="float32")
    assert list(model.model.modality) == ["image"] and model.chat_format.name == "llama3"
    options: dict[str, Any] = {"max_new_tokens": 12, "stream": True}
    seen = model.chat(about(photo), system="Be brief.", **options).result
    assert len(seen.tokens) == 12 or seen.stop_token in model.chat_format.stop
    other = about(photo.with_name("other.png"))
    picture((1, 3), seed=4).save(photo.with_name("other.png"))
    assert model.chat(other, system="Be brief.", **options).result.tokens != seen.tokens
    assert model.chat("What?", system="Be brief.", **options).result.tokens != seen.tokens
    assert model.model(torch.zeros(1, 1, dtype=torch.long)).shape[-1] == VOCAB  # no row for the placeholder
    rows = messages_from_dicts([{"role": "system", "content": "Be brief."}, *about(photo)])
    rendered = model.chat_format.render(rows, open_assistant=True)
    batch = make_batch(model.model, [rendered])
    with torch.no_grad():
        assert seen.tokens == uncached(model.model, batch.tokens_BS, batch.media, len(seen.tokens))


@torch.no_grad()
def test_greedy_tokens_equal_transformers_and_the_uncached_ones(folder: Path, theirs: Any) -> None:
    model = load(folder, dtype="float32").model
    encoder = model.modality["image"].encoder
    for seed, tiling in enumerate(PICTURES):
        tokens = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(seed))
        tiles = encoder.preprocess(picture(tiling, seed))
        prompt = (tokens[0].tolist(), [Placeholder("image", 0, tiles)])
        (found,) = generate(model, [prompt], max_new_tokens=10)
        inputs = inputs_of(tokens, tiles)
        inputs["input_ids"] = torch.cat([torch.tensor([[VOCAB]]), tokens[:, 1:]], dim=1)
        expected = theirs.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert found.tokens == expected[0, 9:].tolist(), tiling
        assert found.tokens == uncached(model, tokens, first_of(tiles), 10)


def uncached(model: MultimodalLlama, tokens: Tensor, media: dict[str, Media], count: int) -> list[int]:
    for _ in range(count):
        logits = model(tokens, media=model.attach(media))
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    return tokens[0, -count:].tolist()


def test_ask_needs_nothing_but_the_checkpoint(
    folder: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)  # where no demo has left an adapter
    arguments = ["--core", str(folder), "--max-new-tokens", "6", "--dtype", "float32", "--json"]
    assert main(["ask", photo.name, "What?", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapters"] == [] and found["core"] == str(folder)
    expected = load(folder, dtype="float32").chat(about(photo), max_new_tokens=6)
    assert found["answer"] == expected


def test_a_released_model_is_measured_without_a_run(
    folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"messages": [*about(photo), {"role": "assistant", "content": answer}]} for answer in ("yes", "no")
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--core", str(folder), "--data", str(data), "--dtype", "float32", "--json", "--no-baselines"]
    assert main(["eval", "vqa", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["num_questions"] == 2


def test_a_plain_core_of_the_same_weights_borrows_the_adapter(
    folder: Path, photo: Path, tmp_path: Path
) -> None:
    whole = load(folder, dtype="float32")
    export_hf(whole.model.core, whole.tokenizer, tmp_path / "plain", chat="llama3")
    assert load_core(tmp_path / "plain").core.digest == whole.model.core.digest
    borrowed = load(tmp_path / "plain", adapters=[folder], dtype="float32")
    options: dict[str, Any] = {"max_new_tokens": 8, "stream": True}
    tokens = borrowed.chat(about(photo), **options).result.tokens
    assert tokens == whole.chat(about(photo), **options).result.tokens
    plain = load(tmp_path / "plain", dtype="float32")
    text = torch.tensor([plain.tokenizer.encode("No picture here")])
    with torch.inference_mode():
        assert torch.equal(whole.model(text), plain.model(text))
        assert torch.equal(borrowed.model(text), plain.model(text))
    with torch.no_grad():
        whole.model.core.norm.weight[0] += 1
    export_hf(whole.model.core, whole.tokenizer, tmp_path / "other", chat="llama3")
    with pytest.raises(ValueError, match="was trained on the core sha256:.*, but this core is sha256:"):
        load(tmp_path / "other", adapters=[folder], dtype="float32")


def test_a_folder_without_a_tokenizer_says_so(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path / "mute")
    with pytest.raises(ValueError, match="mute holds no tokenizer"):
        load(tmp_path / "mute")


# --- training from a released checkpoint ------------------------------------------------------------------------------


def config(folder: Path, *overrides: str) -> dict[str, Any]:
    numbers = {"dim": 128, "num_layers": 6, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 448}
    encoder = {"tile_size": TILE, "width": WIDTH, "ffn_dim": 4 * WIDTH, "dim": 6 * WIDTH}
    return resolve(
        compose_config(
            "train",
            [
                "core=tiny",
                f"core.source={folder}",
                "core.tokenizer=null",
                "modality/image=llama3_2_vision",
                f"modality.image.source={folder}",
                "stage=image_sft",
                "data=none",
                "dtype=float32",
                *(f"core.numbers.{key}={value}" for key, value in numbers.items()),
                *(f"modality.image.encoder.{key}={value}" for key, value in encoder.items()),
                *overrides,
            ],
        )
    )


class SameBatch:
    """A loader whose every batch is the one it was given."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


def test_a_stage_goes_on_from_the_released_weights_and_its_run_attaches(
    folder: Path, photo: Path, tmp_path: Path
) -> None:
    settings = config(folder, "stage.train=[modality.image.adapter]")
    model, _, chat = build_model(settings)
    released = load(folder, dtype="float32")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert before.keys() == released.model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in released.model.state_dict().items())
    rows = [*about(photo), {"role": "assistant", "content": "Noise."}]
    rendered = chat.render(messages_from_dicts(rows))
    batch = make_batch(model, [rendered])
    batch.targets_BS = torch.tensor([rendered.targets])
    run = tmp_path / "run"
    train(
        model,
        SameBatch(batch),
        run_dir=run,
        name="image_sft",
        train=settings["stage"]["train"],
        num_steps=8,
        lr=3e-3,
        config=settings,
        tensorboard=False,
    )
    tuned = load(folder, adapters=[run], dtype="float32")
    for name, tensor in tuned.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
        trained = name.startswith("modality.image.adapter.") and not name.endswith("reserved")
        assert torch.equal(tensor, before[name]) != trained, name
    # Its text core alone is enough: the run names where the rest comes from.
    export_hf(released.model.core, released.tokenizer, tmp_path / "plain", chat="llama3")
    again = load(tmp_path / "plain", adapters=[run], dtype="float32")
    assert digest_tensors(again.model.state_dict()) == digest_tensors(tuned.model.state_dict())


def test_a_video_run_stands_on_the_released_adapter_and_attaches(folder: Path, tmp_path: Path) -> None:
    settings = config(
        folder,
        "modality/video=tiny",
        "modality.video.adapter.image_every=null",
        "modality.video.adapter.image_layers=[2,5]",
        "stage.train=[modality.video]",
    )
    model, _, _ = build_model(settings)
    frames = torch.stack([model.modality["image"].encoder.preprocess(picture((1, 1), n)) for n in range(4)])
    prompt = ([256, 0, 72, 105, 33], [Placeholder("video", 1, frames)])
    batch = make_batch(model, [prompt])
    batch.targets_BS = torch.tensor([[False, False, True, True, True]])
    run = tmp_path / "video"
    train(
        model,
        SameBatch(batch),
        run_dir=run,
        name="video_sft",
        train=settings["stage"]["train"],
        num_steps=3,
        lr=1e-3,
        config=settings,
        tensorboard=False,
    )
    loaded = load(folder, adapters=[run], dtype="float32")
    assert sorted(loaded.model.modality) == ["image", "video"]
    with torch.no_grad():
        seen = loaded.model(batch.tokens_BS, media=loaded.model.attach(batch.media))
        assert torch.equal(seen, model.eval()(batch.tokens_BS, media=model.attach(batch.media)))
        assert not torch.allclose(seen, loaded.model(batch.tokens_BS))
    # On the plain core too: the run names the checkpoint whose adapter it was trained beside.
    export_hf(loaded.model.core, loaded.tokenizer, tmp_path / "plain", chat="llama3")
    again = load(tmp_path / "plain", adapters=[run], dtype="float32")
    assert digest_tensors(again.model.state_dict()) == digest_tensors(loaded.model.state_dict())


def test_numbers_that_do_not_describe_the_checkpoint_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder does not describe .*: tile_size=560 \(checkpoint: 56\)"):
        build_model(config(folder, "modality.image.encoder.tile_size=560"))
    with pytest.raises(
        ValueError, match=r"core.numbers does not describe .*: num_layers=5 \(checkpoint: 6\)"
    ):
        build_model(config(folder, "core.numbers.num_layers=5"))
