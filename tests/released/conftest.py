"""One tiny vision model, drawn once: by Meta's reference and by transformers, and the folders that hold it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_llama.testing.bytes_tokenizer import BytesTokenizer
from tests.released.material import meta_reference, transformers_model, write_meta


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MM_LLAMA_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """The models are too small for a second thread to pay."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The model-parallel groups that Meta's layers ask for, of one process."""
    from torch import distributed

    with warnings.catch_warnings():
        # Deprecations inside the oracle's own dependencies are not ours to fix.
        warnings.simplefilter("ignore")
        from fairscale.nn.model_parallel import initialize

        store = distributed.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        initialize.initialize_model_parallel(1)
    yield
    initialize.destroy_model_parallel()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def reference(parallel: None) -> Any:
    """Meta's own model; tests must not change it."""
    return meta_reference()


@pytest.fixture(scope="module")
def meta_folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Meta's model saves, in one file."""
    return write_meta(tmp_path_factory.mktemp("meta") / "Tiny-Vision-Instruct", reference.state_dict())


@pytest.fixture(scope="session")
def theirs() -> Any:
    """A transformers model of the same sizes; tests must not change it."""
    return transformers_model()


@pytest.fixture(scope="session")
def hf_folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that transformers itself writes, with a byte tokenizer."""
    folder = tmp_path_factory.mktemp("hf") / "Tiny-Vision-Instruct"
    theirs.save_pretrained(folder)
    BytesTokenizer().save(folder, chat_template="<|start_header_id|> (only its markers are looked at)")
    return folder
