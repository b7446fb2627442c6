"""Writing vision models as folders that transformers loads: bit for bit, in whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mm_llama.cli import main
from mm_llama.core.chat import chat_format, messages_from_dicts
from mm_llama.core.tokenizer import load_tokenizer
from mm_llama.model import MultimodalLlama
from mm_llama.released.export import export_vision
from mm_llama.released.load import load_vision
from mm_llama.testing.bytes_tokenizer import BytesTokenizer
from tests.released.material import VOCAB, picture, states_before, transformers_model, write_meta
from tests.released.test_reference import LENGTH, difference, first_of, inputs_of, reference_logits, whole
from tests.released.test_released_load import same, state_of

pytestmark = pytest.mark.filterwarnings("ignore:.*all_gather_tensor:FutureWarning")


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_there_and_back_is_bit_equal_and_transformers_computes_the_same(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    from transformers import MllamaForConditionalGeneration

    transformers_model(seed=3).to(dtype).save_pretrained(tmp_path / "theirs")
    loaded, image = load_vision(tmp_path / "theirs", dtype=None)
    export_vision(MultimodalLlama(loaded.core, {"image": image}), None, tmp_path / "ours", chat="plain")
    before, after = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "ours")
    assert same(after, before)
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    theirs, ours = (
        MllamaForConditionalGeneration.from_pretrained(tmp_path / side, attn_implementation="eager").eval()
        for side in ("theirs", "ours")
    )
    assert theirs.dtype == ours.dtype == dtype
    tokens = torch.arange(LENGTH)[None]
    inputs = inputs_of(tokens, image.encoder.preprocess(picture((1, 2))).to(dtype))
    assert torch.equal(ours(**inputs).logits, theirs(**inputs).logits)
    again, _ = load_vision(tmp_path / "ours")
    assert again.core.digest == loaded.core.digest
    assert again.core.config == loaded.core.config


@pytest.mark.parametrize("num_shards", [1, 8])
@torch.no_grad()
def test_import_turns_metas_folder_into_one_that_transformers_loads(
    num_shards: int, reference: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import MllamaForConditionalGeneration

    source = write_meta(tmp_path / "Tiny-Vision-Instruct", reference.state_dict(), num_shards)
    out = tmp_path / "out"
    code, said, _ = run(capsys, "import", str(source), str(out), "--json", "--shard-gb", "0.004")
    report = json.loads(said)
    assert code == 0 and report["form"] == "Meta" and report["chat"] == "llama3"
    assert report["weight_files"] == len(list(out.glob("model-*-of-*.safetensors"))) > 2
    assert report["digest"] == load_vision(source)[0].core.digest
    # The tables of tile positions hold a row per tiling here, and a vector per place there.
    tables = 2 * (9 * 4 - 16) * 64 + (9 * 4 - 16) * 17 * 64
    assert report["parameters"] == sum(t.numel() for t in reference.state_dict().values()) + tables
    assert same(state_of(out), state_of(source))
    model = MllamaForConditionalGeneration.from_pretrained(out, attn_implementation="eager").eval()
    reference.setup_cache(1, torch.device("cpu"), torch.float32)
    tokens = torch.randint(0, VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(5))
    tiles = whole(out).modality["image"].encoder.preprocess(picture((2, 2)))
    expected = reference_logits(reference, tokens, [[(0, (2, 2))]])
    assert difference(states_before(model)(**inputs_of(tokens, tiles)).logits, expected) <= 2e-6
    ours = whole(out)
    assert difference(ours(tokens, media=ours.attach(first_of(tiles))), expected) <= 2e-6


def test_export_of_a_folder_is_that_folder(
    hf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (hf_folder / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "do_sample": true}')
    code, said, error = run(capsys, "export", str(hf_folder), str(tmp_path / "out"))
    assert (code, error) == (0, "")
    assert "parameters from a Hugging Face checkpoint" in said and "chat format llama3" in said
    assert same(tensors_of(tmp_path / "out"), tensors_of(hf_folder))
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (hf_folder, tmp_path / "out")
    )
    for half in ("text_config", "vision_config"):
        differing = {
            key: (value, after[half].get(key))
            for key, value in before[half].items()
            if key in after[half] and after[half][key] != value
        }
        assert differing.keys() <= {"eos_token_id"}  # ours lists all that end an answer
        assert before[half].keys() - after[half].keys() <= {"dropout", "initializer_range", "use_cache"}
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    stops = chat_format("llama3", BytesTokenizer()).stop
    assert set(settings["eos_token_id"]) == stops
    assert (settings["temperature"], settings["top_p"], settings["do_sample"]) == (0.6, 0.9, True)
    assert load_tokenizer(tmp_path / "out").chat_template == load_tokenizer(hf_folder).chat_template


def test_dtype_is_cast_on_the_way(
    hf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half"
    assert run(capsys, "export", str(hf_folder), str(out), "--dtype", "bfloat16")[0] == 0
    before, after = tensors_of(hf_folder), tensors_of(out)
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_failed_export_leaves_nothing(
    hf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(BytesTokenizer):
        def save(self, folder: str | Path, *, chat_template: str | None = None) -> None:
            raise KeyboardInterrupt

    model = whole(hf_folder)
    with pytest.raises(KeyboardInterrupt):
        export_vision(model, Failing(), tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    code, _, error = run(capsys, "export", str(hf_folder), str(tmp_path / "mine"))
    assert code != 0 and "already there and not an empty folder" in error


def test_a_model_of_another_layout_is_refused(hf_folder: Path, tmp_path: Path) -> None:
    model = whole(hf_folder)
    with pytest.raises(ValueError, match="has no image modality"):
        export_vision(MultimodalLlama(model.core), None, tmp_path / "out")
    image = model.modality["image"]
    image.encoder.drop_absent = True
    with pytest.raises(ValueError, match="branch_scale or drop_absent is set"):
        export_vision(model, None, tmp_path / "out")
    image.encoder.drop_absent = False
    image.adapter.reserved = None
    with pytest.raises(
        ValueError, match="1 tensor is not of the released layout: modality.image.adapter.reserved"
    ):
        export_vision(model, None, tmp_path / "out")
    image.encoder = torch.nn.Identity()
    with pytest.raises(ValueError, match="its encoder has no tile_size, patch_size"):
        export_vision(model, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- tokenizer, processor, template -------------------------------------------------------------------------------


PARTS = [
    {"type": "image", "path": "dog.png"},
    {"type": "text", "text": "What is in\n\n the picture? <|image|> <|eot_id|>"},
]
DIALOG: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief, 12345."},
    {"role": "user", "content": PARTS},
    {"role": "assistant", "content": "A dog."},
    {"role": "user", "content": "Its colour?"},
]


@pytest.fixture(scope="module")
def instruct(
    reference: Any, asset_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Meta's form with Llama 3's real vocabulary and tokenizer, exported; two layers, 128,256 rows."""
    state = dict(reference.state_dict())
    generator = torch.Generator().manual_seed(7)
    for name in ("text_model.tok_embeddings.weight", "text_model.output.weight"):
        state[name] = torch.randn(128_256, 128, generator=generator)
    home = tmp_path_factory.mktemp("instruct")
    folder = write_meta(home / "Vision-Instruct", state, vocab_size=128_256)
    model = asset_dir("llama_models") / "llama_models/llama3/tokenizer.model"
    (folder / "tokenizer.model").symlink_to(model)
    assert main(["import", str(folder), str(home / "out")]) == 0
    return home / "out"


def test_the_placeholder_has_the_hubs_name_and_id(instruct: Path) -> None:
    from transformers import AutoTokenizer

    config = json.loads((instruct / "config.json").read_text())
    assert config["image_token_index"] == 128_256
    assert config["text_config"]["eos_token_id"] == [128_001, 128_008, 128_009]
    assert (config["text_config"]["bos_token_id"], config["text_config"]["pad_token_id"]) == (
        128_000,
        128_004,
    )
    assert json.loads((instruct / "generation_config.json").read_text())["eos_token_id"] == [
        128_001,
        128_008,
        128_009,
    ]
    theirs = AutoTokenizer.from_pretrained(instruct)
    assert theirs.convert_tokens_to_ids("<|image|>") == 128_256
    assert len(theirs) == 128_257
    assert theirs.convert_tokens_to_ids("<|eot_id|>") == 128_009
    assert theirs.convert_ids_to_tokens(128_011).startswith("<|reserved_special_token_")
    ours = load_vision(instruct)[0].tokenizer
    assert ours is not None and ours.specials["<|image|>"] == 128_256
    assert len(ours.specials) == 257


def test_our_tokens_are_those_of_metas_format_and_of_the_processor(instruct: Path) -> None:
    from transformers import AutoProcessor

    loaded, _ = load_vision(instruct)
    assert loaded.chat == "llama3" and loaded.tokenizer is not None
    chat = chat_format(loaded.chat, loaded.tokenizer)
    assert chat.stop == {128_001, 128_008, 128_009}
    rendered = chat.render(messages_from_dicts(DIALOG), open_assistant=True)
    ids = list(rendered.tokens)
    for place in rendered.media:
        ids[place.position] = 128_256

    def text(words: str) -> list[int]:
        assert loaded.tokenizer is not None
        return loaded.tokenizer.encode(words)

    def head(role: str) -> list[int]:
        return [128_006, *text(role), 128_007, *text("\n\n")]

    # As Meta's format lays it out, put together by hand; what a person types is text, also where it looks like markup.
    by_hand = [128_000, *head("system"), *text("Be brief, 12345."), 128_009]
    by_hand += [*head("user"), 128_256, *text(str(PARTS[1]["text"])), 128_009]
    by_hand += [*head("assistant"), *text("A dog."), 128_009]
    by_hand += [*head("user"), *text("Its colour?"), 128_009, *head("assistant")]
    assert ids == by_hand
    # The processor takes typed markup for markup, so it gets a dialog without.
    plain = json.loads(json.dumps(DIALOG).replace(" <|image|> <|eot_id|>", ""))
    processor = AutoProcessor.from_pretrained(instruct)
    prompt = processor.apply_chat_template(plain, add_generation_prompt=True)
    rendered = chat.render(messages_from_dicts(plain), open_assistant=True)
    ids = list(rendered.tokens)
    for place in rendered.media:
        ids[place.position] = 128_256
    options = {"add_special_tokens": False, "return_tensors": "pt"}
    batch = processor(images=[picture((2, 2))], text=prompt, **options)
    assert batch["input_ids"][0].tolist() == ids


@torch.no_grad()
def test_the_exported_processor_prepares_the_same_tiles(instruct: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(instruct)
    encoder = load_vision(instruct)[1].encoder
    for tiling in ((1, 1), (1, 3), (2, 2)):
        ours = encoder.preprocess(picture(tiling)).flatten(0, 1)
        theirs = processor.image_processor(picture(tiling), return_tensors="pt")["pixel_values"][0, 0]
        assert (theirs[: len(ours)] - ours).abs().max() < 0.016  # a grey level, where torchvision resizes
        assert theirs.shape == (4, 3, 56, 56)


def test_a_base_model_has_text_after_its_picture_and_no_headers(
    reference: Any, asset_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = write_meta(tmp_path / "Tiny-Vision", reference.state_dict())
    BytesTokenizer().save(tmp_path / "bytes")
    assert main(["import", str(folder), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "bytes")]) == 0
    loaded, _ = load_vision(tmp_path / "out")
    assert loaded.chat == "plain" and loaded.tokenizer is not None
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    chat = chat_format("plain", loaded.tokenizer)
    rows = [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "If"}]}]
    rendered = chat.render(messages_from_dicts(rows), open_assistant=True)
    assert rendered.tokens == [256, 0, ord("I"), ord("f")]
    assert [place.position for place in rendered.media] == [1]
