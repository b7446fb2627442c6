"""Every form of tokenizer against golden ids, against other implementations and against hostile text."""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm_llama.core.gguf_tokenizer import SPLITS, load_gguf_tokenizer, read_metadata
from mm_llama.core.tiktoken_llama3 import MAX_CHARS, MAX_RUN, pieces, recover_merges
from mm_llama.core.tokenizer import JsonTokenizer, Tokenizer, bpe_document, byte_alphabet, load_tokenizer
from mm_llama.testing.bytes_tokenizer import BytesTokenizer

# A busy machine is no failure: nothing here is judged by the clock.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FORMS = ("tiktoken", "json", "gguf", "smollm2", "bytes")
LLAMA3 = ("tiktoken", "json", "gguf")
LANGUAGES = "Grüße, señor! Привет мир. 你好世界。 مرحبا بالعالم 🦙🙂‍↔️ नमस्ते 안녕하세요 ½ ３ Ⅷ \u200d\ufeff"
GAPS = "a  b\t\tc \n\n  d\r\n\r\n e   \n I'LL we'Ve don't 1234567 3.14 == != <|> </s> \x00\x7f"
# Bytes for which SmolLM2's vocabulary has no token; other implementations drop these characters silently.
SMOLLM2_LACKS = {4, 6, 19, 20, 22, 29, *range(0xF1, 0xF5)} - {0xF3, 0xF4}


@pytest.fixture(scope="module")
def load(asset_dir: Callable[[str], Path]) -> Callable[[str], Tokenizer]:
    made: dict[str, Tokenizer] = {"bytes": BytesTokenizer()}
    paths = {
        "tiktoken": lambda: asset_dir("llama_models") / "llama_models/llama3/tokenizer.model",
        "json": lambda: asset_dir("lenml_llama3_1") / "package/models",
        "gguf": lambda: asset_dir("llama_cpp_vocabs") / "ggml-vocab-llama-bpe.gguf",
        "smollm2": lambda: asset_dir("smollm2_135m"),
    }

    def tokenizer(form: str) -> Tokenizer:
        if form not in made:
            made[form] = load_tokenizer(paths[form]())
        return made[form]

    return tokenizer


@pytest.fixture(scope="module", params=FORMS)
def tokenizer(request: pytest.FixtureRequest, load: Callable[[str], Tokenizer]) -> Tokenizer:
    return load(request.param)


def golden_cases(vocabulary: Path) -> Iterator[tuple[str, list[int]]]:
    texts = Path(f"{vocabulary}.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    lines = Path(f"{vocabulary}.out").read_text().split("\n")
    yield from zip(texts, ([int(id) for id in line.split()] for line in lines), strict=True)


@pytest.mark.parametrize("form", LLAMA3)
def test_llama3_golden_cases(
    form: str, load: Callable[[str], Tokenizer], asset_dir: Callable[[str], Path]
) -> None:
    cases = list(golden_cases(asset_dir("llama_cpp_vocabs") / "ggml-vocab-llama-bpe.gguf"))
    assert len(cases) == 47
    tokenizer = load(form)
    wrong = [(text, tokenizer.encode(text), ids) for text, ids in cases if tokenizer.encode(text) != ids]
    assert not wrong


def test_golden_cases_of_every_gguf_vocabulary_at_hand(asset_dir: Callable[[str], Path]) -> None:
    seen = 0
    for path in sorted(asset_dir("llama_cpp_vocabs").glob("*.gguf")):
        if read_metadata(path).get("tokenizer.ggml.pre") not in SPLITS or not Path(f"{path}.out").exists():
            continue
        tokenizer = load_gguf_tokenizer(path)
        wrong = [text for text, ids in golden_cases(path) if tokenizer.encode(text) != ids]
        assert not wrong, path
        seen += 1
    assert seen


def test_special_tokens_have_the_published_ids(load: Callable[[str], Tokenizer]) -> None:
    llama3 = load("tiktoken")
    assert llama3.vocab_size == 128_256 and len(llama3.specials) == 256
    names = {
        128_000: "<|begin_of_text|>",
        128_001: "<|end_of_text|>",
        128_002: "<|reserved_special_token_0|>",
        128_003: "<|reserved_special_token_1|>",
        128_004: "<|finetune_right_pad_id|>",
        128_005: "<|step_id|>",
        128_006: "<|start_header_id|>",
        128_007: "<|end_header_id|>",
        128_008: "<|eom_id|>",
        128_009: "<|eot_id|>",
        128_010: "<|python_tag|>",
        128_011: "<|image|>",
        128_012: "<|reserved_special_token_2|>",
        128_255: "<|reserved_special_token_245|>",
    }
    assert {id: name for name, id in llama3.specials.items() if id in names} == names
    for form in ("tiktoken", "gguf"):
        assert (load(form).bos_token, load(form).adds_bos) == ("<|begin_of_text|>", True)
    smollm2 = load("smollm2")
    assert smollm2.vocab_size == 49_152
    assert [smollm2.specials[f"<|{name}|>"] for name in ("endoftext", "im_start", "im_end")] == [0, 1, 2]
    assert (smollm2.bos_token, smollm2.eos_token, smollm2.adds_bos) == ("<|im_start|>", "<|im_end|>", False)


def test_every_special_spelt_in_text_is_ordinary_text(tokenizer: Tokenizer) -> None:
    special_ids = set(tokenizer.specials.values())
    for special in tokenizer.specials:
        for text in (special, f"a{special}b", f" {special}\n", special * 2, special[:-1] + special):
            ids = tokenizer.encode(text)
            assert special_ids.isdisjoint(ids), text
            assert tokenizer.decode(ids) == text


def hostile(tokenizer: Tokenizer) -> st.SearchStrategy[str]:
    """Random text with every special and halves of specials strewn in."""
    lacking = SMOLLM2_LACKS if tokenizer.vocab_size == 49_152 else set()
    alphabet = st.characters(codec="utf-8").filter(lambda c: lacking.isdisjoint(c.encode("utf-8")))
    special = st.sampled_from(sorted(tokenizer.specials))
    half = st.tuples(special, st.integers(0, 12)).map(lambda pair: pair[0][: pair[1]])
    common = st.sampled_from([" ", "\n", "\n\n", "  ", "'s", "12", "the", LANGUAGES])
    return st.lists(st.one_of(special, half, common, st.text(alphabet, max_size=8)), max_size=8).map("".join)


@settings(PATIENT, max_examples=200)
@given(data=st.data())
def test_no_text_yields_a_special_id_and_every_text_comes_back(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    text = data.draw(hostile(tokenizer))
    ids = tokenizer.encode(text)
    assert set(tokenizer.specials.values()).isdisjoint(ids)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8") == text


def test_specials_have_no_bytes_and_are_left_out_of_decoded_text(tokenizer: Tokenizer) -> None:
    special = list(tokenizer.specials.values())
    assert all(tokenizer.token_bytes(id) == b"" for id in special)
    ids = [special[0], *tokenizer.encode("one "), special[-1], *tokenizer.encode("two"), special[0]]
    assert tokenizer.decode(ids) == "one two"
    assert tokenizer.decode([]) == "" and tokenizer.encode("") == []


def test_a_character_cut_in_the_middle_decodes_to_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab\U0001f999")
    assert len(ids) > 3
    assert tokenizer.decode(ids[:-1]).rstrip("\ufffd") == "ab"


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    for id in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token id {id} is outside the vocabulary of"):
            tokenizer.decode([id])


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud83d' at character 3"):
        tokenizer.encode("abc\ud83d")


@pytest.mark.parametrize("form", ["tiktoken", "smollm2", "bytes"])
def test_a_tokenizer_can_travel_to_a_worker_process(form: str, load: Callable[[str], Tokenizer]) -> None:
    tokenizer = load(form)
    copy = ForkingPickler.loads(ForkingPickler.dumps(tokenizer))
    assert copy.encode(LANGUAGES) == tokenizer.encode(LANGUAGES)
    assert copy.decode(tokenizer.encode(LANGUAGES)) == LANGUAGES


def test_characters_without_a_token_are_refused_not_dropped(load: Callable[[str], Tokenizer]) -> None:
    smollm2 = load("smollm2")
    for byte in range(0x20):
        if byte in SMOLLM2_LACKS:
            with pytest.raises(ValueError, match=rf"no token for .* \(byte 0x{byte:02x}, character 2 "):
                smollm2.encode(f"ab{chr(byte)}")
        else:
            assert smollm2.decode(smollm2.encode(f"ab{chr(byte)}")) == f"ab{chr(byte)}"
    with pytest.raises(ValueError, match="byte 0xf1"):
        smollm2.encode("\U00040000")


def test_very_long_texts_are_cut_as_in_the_reference(load: Callable[[str], Tokenizer]) -> None:
    from llama_models.llama3.tokenizer import Tokenizer as Reference

    reference = Reference.get_instance()
    ours = load("tiktoken")
    word = "the quick brown fox "
    texts = [
        word * (MAX_CHARS // len(word)) + word,  # just above the limit on characters
        "ab" * MAX_RUN,
        " " * (2 * MAX_RUN + 1) + "x",
        ("y" * (MAX_RUN + 1) + " \n" * MAX_RUN) * 2,
    ]
    for text in texts:
        assert ours.encode(text) == reference.encode(text, bos=False, eos=False)
        assert ours.decode(ours.encode(text)) == text


@settings(PATIENT)
@given(st.lists(st.tuples(st.sampled_from(" \nab"), st.integers(1, 60_000)), max_size=12))
def test_pieces_stay_under_the_limits_and_lose_nothing(runs: list[tuple[str, int]]) -> None:
    text = "".join(character * length for character, length in runs)
    cut = list(pieces(text))
    assert "".join(cut) == text
    for piece in cut:
        assert len(piece) <= MAX_CHARS
        for run in (
            piece.replace("\n", " ").replace("b", "a").replace(" a", " |a").replace("a ", "a| ").split("|")
        ):
            assert len(run) <= MAX_RUN


@pytest.mark.parametrize("form", ["tiktoken", "gguf", "smollm2"])
def test_a_megabyte_without_a_space_takes_seconds_at_most(
    form: str, load: Callable[[str], Tokenizer]
) -> None:
    tokenizer = load(form)
    for text in ("\u00e9x" * 200_000, " " * 1_000_000, "\n" * 400_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def both_of_one_file(
    load: Callable[[str], Tokenizer], asset_dir: Callable[[str], Path]
) -> tuple[Tokenizer, Any]:
    return load("json"), transformers_tokenizer(asset_dir("lenml_llama3_1") / "package/models")


@settings(PATIENT, max_examples=100)
@given(text=st.text(st.characters(codec="utf-8")))
def test_equals_transformers_on_the_same_tokenizer_json(
    both_of_one_file: tuple[Tokenizer, Any], text: str
) -> None:
    ours, theirs = both_of_one_file
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("form", FORMS)
def test_saved_tokenizer_loads_in_transformers_with_equal_ids(
    form: str, load: Callable[[str], Tokenizer], tmp_path: Path
) -> None:
    ours = load(form)
    ours.save(tmp_path, chat_template=ours.chat_template or "{{ bos_token }}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    theirs = transformers_tokenizer(tmp_path)
    assert len(theirs) == ours.vocab_size
    assert {text: theirs.convert_tokens_to_ids(text) for text in ours.specials} == ours.specials
    assert (theirs.bos_token, theirs.eos_token) == (ours.bos_token, ours.eos_token)
    assert theirs.chat_template == (ours.chat_template or "{{ bos_token }}")
    for text in (LANGUAGES, GAPS, "x", *(chr(i) for i in range(0x2000, 0x2100))):
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == text
        bos = [ours.specials[str(ours.bos_token)]] if ours.adds_bos else []
        assert theirs.encode(text) == bos + ids

    again = load_tokenizer(tmp_path)
    assert (again.specials, again.vocab_size) == (ours.specials, ours.vocab_size)
    assert (again.bos_token, again.eos_token, again.adds_bos) == (
        ours.bos_token,
        ours.eos_token,
        ours.adds_bos,
    )
    assert [again.token_bytes(id) for id in range(ours.vocab_size)] == [
        ours.token_bytes(id) for id in range(ours.vocab_size)
    ]
    assert again.encode(GAPS + LANGUAGES) == ours.encode(GAPS + LANGUAGES)


def test_merges_recovered_from_ranks_are_the_published_ones(
    load: Callable[[str], Tokenizer], asset_dir: Callable[[str], Path]
) -> None:
    tiktoken = load("tiktoken")
    published = json.loads((asset_dir("lenml_llama3_1") / "package/models/tokenizer.json").read_bytes())[
        "model"
    ]
    merges = recover_merges({tiktoken.token_bytes(id): id for id in range(128_000)})
    assert len(merges) == 280_147
    assert merges == published["merges"]


def test_gguf_header_equals_what_the_gguf_package_reads(asset_dir: Callable[[str], Path]) -> None:
    from gguf import GGUFReader

    (path,) = asset_dir("smollm2_135m").glob("*.gguf")
    fields = GGUFReader(path).fields
    theirs = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    ours = read_metadata(path)
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key] == value, key


def write_gguf(path: Path, **changes: Any) -> Path:
    """A GGUF file that holds a vocabulary of bytes, one merge, and tokens of every type."""
    from gguf import GGUFWriter, TokenType

    words = ["ab", "<ctl>", "<user>", "<pad>"]
    types = [TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED]
    writer = GGUFWriter(path, "llama")
    parts = {"model": "gpt2", "pre": "smollm", "merges": ["a b"], **changes}
    writer.add_tokenizer_model(parts["model"])
    if parts["pre"] is not None:
        writer.add_tokenizer_pre(parts["pre"])
    writer.add_token_list([*byte_alphabet(), *words])
    writer.add_token_types([TokenType.NORMAL] * 256 + types)
    if parts["merges"]:
        writer.add_token_merges(parts["merges"])
    writer.add_eos_token_id(257)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_gguf_token_types_decide_what_text_can_reach(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf"))
    assert tokenizer.specials == {"<ctl>": 257, "<pad>": 259}
    assert (tokenizer.vocab_size, tokenizer.eos_token, tokenizer.bos_token) == (260, "<ctl>", None)
    assert tokenizer.encode("ab<user>ab") == [256, 258, 256]
    ids = tokenizer.encode("<pad><ctl>ab")
    assert {257, 259}.isdisjoint(ids) and ids[-1] == 256
    assert tokenizer.decode([256, 257, 258, 259, 0]) == "ab<user>\x00"


@pytest.mark.parametrize("rule", ["gpt-2", "smollm"])
def test_split_rules_equal_the_librarys_own(rule: str) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    digits = [Digits(individual_digits=True)] if rule == "smollm" else []
    own = Sequence([*digits, ByteLevel(add_prefix_space=False, use_regex=True)])
    alphabet = {character: byte for byte, character in enumerate(byte_alphabet())}
    document = bpe_document(alphabet, [], [], SPLITS[rule], ignore_merges=False)
    ours = Library.from_str(json.dumps(document)).pre_tokenizer
    for text in (LANGUAGES, GAPS, "x²½ 12,345.67 Ⅷ٣  '' 'sx 's\n'll  "):
        assert ours.pre_tokenize_str(text) == own.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "tekken"}, r"tokenizer\.ggml\.pre is 'tekken', an unknown split rule; known are llama-bpe"),
        ({"pre": None}, r"tokenizer\.ggml\.pre is None"),
        ({"model": "llama"}, r"tokenizer\.ggml\.model is 'llama'; expected 'gpt2'"),
        ({"merges": []}, r"lacks tokenizer\.ggml\.merges"),
    ],
)
def test_gguf_vocabularies_of_another_kind_are_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_tokenizer(write_gguf(tmp_path / "m.gguf", **changes))


def test_a_damaged_gguf_header_is_an_error_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(8, len(whole) - 40, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable GGUF file"):
            read_metadata(path)
    last = struct.pack("<Q", 1) + b"k" + struct.pack("<IQ", 8, 9)  # one field, a string of nine bytes
    for text, whole_text in ((b"123456789", True), (b"12345678", False)):
        path.write_bytes(whole[:16] + struct.pack("<Q", 1) + last + text)
        if whole_text:
            assert read_metadata(path) == {"k": "123456789"}
        else:
            with pytest.raises(ValueError, match="string of 9 bytes runs past the end"):
                read_metadata(path)
    path.write_bytes(whole[:16] + b"\xff" * 8 + whole[24:])
    with pytest.raises(ValueError, match="not a readable GGUF file"):
        read_metadata(path)
    for key in (b"tokenizer.ggml.token_type", b"tokenizer.ggml.tokens"):
        length = whole.index(key) + len(key) + 8  # after the kind of value and the kind of element
        for forged in (2**64 - 1, 2**40):
            path.write_bytes(whole[:length] + struct.pack("<Q", forged) + whole[length + 8 :])
            with pytest.raises(ValueError, match="not a readable GGUF file"):
                read_metadata(path)
    nested = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5_000
    path.write_bytes(whole[:16] + struct.pack("<Q", 1) + struct.pack("<Q", 1) + b"k" + nested)
    with pytest.raises(ValueError, match="not a readable GGUF file"):
        read_metadata(path)
    path.write_bytes(whole[:4] + b"\0\0\0\3" + whole[8:])
    with pytest.raises(ValueError, match="versions 2 and 3"):
        read_metadata(path)


def little_document(**model: Any) -> dict[str, Any]:
    vocab = {character: byte for byte, character in enumerate(byte_alphabet())} | {"ab": 256, "abc": 257}
    document = bpe_document(vocab, ["a b", "ab c"], [], [], ignore_merges=True)
    document["model"].update(model)
    return document


def added(text: str, id: int, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": text, "special": special, **flags}


def test_specials_that_also_stand_in_the_vocabulary_cannot_be_reached() -> None:
    """As a whole word, through a merge, and as a single character."""
    document = little_document()
    document["added_tokens"] = [added("abc", 257, True), added("ab", 256, True), added("z", ord("z"), True)]
    tokenizer = JsonTokenizer(document, source="test")
    assert tokenizer.encode("abc") == [byte_alphabet().index(c) for c in "abc"]
    with pytest.raises(ValueError, match="no token for 'z'"):
        tokenizer.encode("xyz")


def test_added_words_that_are_not_special_keep_their_ids() -> None:
    document = little_document()
    document["added_tokens"] = [added("<s>", 300, True), added("Grüße", 301, False), added("<x>", 400, False)]
    tokenizer = JsonTokenizer(document, source="test")
    ids = tokenizer.encode("Grüße<x><s>")
    assert ids[:2] == [301, 400] and 300 not in ids
    assert tokenizer.decode(ids) == "Grüße<x><s>"
    assert tokenizer.vocab_size == 401


def test_a_control_token_that_forgot_its_special_mark_is_special() -> None:
    document = little_document()
    document["added_tokens"] = [added("<|image|>", 258, False)]
    tokenizer = JsonTokenizer(document, source="test")
    assert tokenizer.specials == {"<|image|>": 258}
    assert 258 not in tokenizer.encode("<|image|>")


def test_truncation_padding_and_dropout_of_a_file_do_not_touch_text(tmp_path: Path) -> None:
    document = little_document(dropout=1.0)
    document["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert load_tokenizer(tmp_path).encode("xyzab") == [*(byte_alphabet().index(c) for c in "xyz"), 256]


def test_saving_that_fails_leaves_no_fragment(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(OSError):
        BytesTokenizer().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_folder_prefers_json_and_takes_the_only_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    assert load_tokenizer(tmp_path).vocab_size == 260
    BytesTokenizer().save(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == 265


def test_template_file_beside_the_config_wins(tmp_path: Path) -> None:
    BytesTokenizer().save(tmp_path, chat_template="in the config")
    assert load_tokenizer(tmp_path).chat_template == "in the config"
    (tmp_path / "chat_template.jinja").write_text("in its own file")
    assert load_tokenizer(tmp_path / "tokenizer.json").chat_template == "in its own file"


WORDPIECE = {"model": {"type": "WordPiece", "vocab": {"a": 0}}, "decoder": None}
SENTENCEPIECE = {
    "model": {"type": "BPE", "vocab": {"▁a": 0}, "merges": []},
    "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b'{"model": ', r"tokenizer\.json:1: not JSON: "),
        ("tokenizer.json", b"[1]", r"no tokenizer of a known form \(it starts with b'\[1\]'\)"),
        ("tokenizer.json", json.dumps(WORDPIECE).encode(), "of type 'WordPiece'; expected a byte-level BPE"),
        ("tokenizer.json", json.dumps(SENTENCEPIECE).encode(), "a BPE that is not byte-level"),
        ("tokenizer.json", b'{"version": "1.0"}', "expected a byte-level BPE with vocab and merges"),
        (
            "tokenizer.json",
            json.dumps(little_document(merges=["a q"])).encode(),
            "not a usable tokenizer.json",
        ),
        (
            "tokenizer.model",
            b"\x0a\x0e\x0a\x05<unk>\x15",
            "SentencePiece models of Llama 2 are not supported",
        ),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "holds 2 distinct tokens; .* exactly 128,000"),
        (
            "tokenizer.model",
            b"IQ== 0\nIg== one\n",
            r"tokenizer\.model:2: expected a base64 token and its rank",
        ),
        ("tokenizer.model", b"IQ== 0\n??? 1\n", r"tokenizer\.model:2: expected a base64 token and its rank"),
        ("tokenizer.model", b"", "no tokenizer of a known form"),
        (
            "notes.txt",
            b"hello",
            r"no tokenizer.json, tokenizer.model or .gguf file in .*; it holds notes.txt",
        ),
        ("a.gguf", b"GGUF", "not a readable GGUF file"),
    ],
)
def test_files_that_are_no_tokenizer_are_named(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_tokenizer(tmp_path)


def test_missing_and_ambiguous_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="it holds nothing"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*absent: expected a checkpoint folder"):
        load_tokenizer(tmp_path / "absent")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"holds 2 GGUF files, name one: a\.gguf, b\.gguf"):
        load_tokenizer(tmp_path)


def test_a_cut_tiktoken_file_is_refused(asset_dir: Callable[[str], Path], tmp_path: Path) -> None:
    lines = (asset_dir("llama_models") / "llama_models/llama3/tokenizer.model").read_bytes().splitlines()
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="holds 127,999 distinct tokens"):
        load_tokenizer(path)
    lines[7] = base64.b64encode(b"never seen") + b" 6"  # a rank given twice
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match="ranked 0 to 127,999"):
        load_tokenizer(path)


def test_a_bos_token_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"bos_token '<s>' is not among the special tokens of here"):
        JsonTokenizer(little_document(), source="here", bos_token="<s>")
