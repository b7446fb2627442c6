"""A model to talk to: `model = load("smollm2_135m", adapters=["runs/demo/image"])`, `model.chat(...)`.

Importing this module imports no torch; `load` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from mm_llama.core.chat import ChatFormat, Message
    from mm_llama.core.tokenizer import Tokenizer
    from mm_llama.generation.engine import TextStream
    from mm_llama.model import MultimodalLlama

Messages = str | Sequence[Mapping[str, Any]]


def load(
    core: str | Path = "smollm2_135m",
    adapters: Sequence[str | Path] = (),
    *,
    dtype: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    beam: int = 0,
    weights: str = "auto",
) -> Assistant:
    """Load a core (a name of conf/core or a checkpoint's path) and attach trained adapters (run folders).

    `dtype` "auto" is bfloat16 where the device computes in it, else float32. `threads` sets torch's number of
    threads for the whole process. `weights` says how they are held (`MultimodalLlama.hold`): "auto" as this device
    reads them fastest, the same numbers; "int8" rounded, half the bytes; "plain" as they are, to be read, moved or
    trained. With `beam` > 0 what recordings say is searched among so many readings
    (`mm_llama.generation.beam`). Raises ValueError for an adapter of another core, naming both digests, and for a
    search where no readout is attached.
    """
    if isinstance(adapters, str | Path):
        adapters = [adapters]
    for run in adapters:
        if not Path(run).is_dir():
            raise FileNotFoundError(
                f"there is no adapter run at {run}: expected the folder of a finished stage"
            )
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, expected at least 1")

    import torch

    from mm_llama.build import load_model
    from mm_llama.dtypes import choose_dtype

    if threads is not None:
        torch.set_num_threads(threads)
    chosen = choose_dtype("bfloat16" if (dtype, weights) == ("auto", "int8") else dtype, device)
    model, tokenizer, chat_format = load_model(str(core), adapters, chosen, device)
    model.hold(weights)
    if beam:
        from mm_llama.generation.beam import BeamSearch, listen_by

        listen_by(BeamSearch(beam), model, tokenizer)
    return Assistant(model, tokenizer, chat_format)


class Assistant:
    """A model (`model.core` is the text model, `model.modality` the rest), its tokenizer, its chat format."""

    def __init__(self, model: MultimodalLlama, tokenizer: Tokenizer, chat_format: ChatFormat) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.chat_format = chat_format

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        seed: int = ...,
        system: str | None = ...,
        stream: Literal[False] = ...,
        compile: bool = ...,
    ) -> str: ...

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        seed: int = ...,
        system: str | None = ...,
        stream: Literal[True],
        compile: bool = ...,
        watch: Collection[int] = ...,
    ) -> TextStream: ...

    def chat(
        self,
        messages: Messages,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        system: str | None = None,
        stream: bool = False,
        compile: bool = False,
        watch: Collection[int] = (),
    ) -> str | TextStream:
        """Answer a question (a string) or continue a conversation (OpenAI-style messages) as the assistant.

        A part of a message's content is text, or a picture as a path, the bytes of a file or a PIL picture:
        `{"type": "image", "path": "cat.jpg"}`. Greedy unless `temperature` is above 0. `stream=True` gives an
        iterator of text pieces whose `result` is the whole answer with its tokens, stop reason and times; `watch`
        names layers of the core whose states `written` of it tells (`mm_llama.voice.speak` reads them). `compile` needs
        a model that was loaded with weights="plain".
        Raises ValueError for messages that cannot be answered, pictures without an image adapter, and a
        conversation that with its answer does not fit the core's context: nothing is ever cut.
        """
        from mm_llama.generation.engine import stream as stream_of
        from mm_llama.generation.sampling import Sampling

        pieces = stream_of(
            self.model,
            self.chat_format.render(self._conversation(messages, system), open_assistant=True),
            tokenizer=self.tokenizer,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
            stop=self.chat_format.stop,
            compile=compile,
            watch=watch,
        )
        return pieces if stream else pieces.result.text

    def _conversation(self, messages: Messages, system: str | None) -> list[Message]:
        from mm_llama.core.chat import Message, Text, messages_from_dicts

        rows = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        conversation = messages_from_dicts(rows)
        if not conversation:
            raise ValueError("there are no messages, so nothing to answer")
        if conversation[-1].role == "assistant":
            raise ValueError(
                "the last message is the assistant's own: end with the message that is to be answered"
            )
        if system is not None:
            if conversation[0].role == "system":
                raise ValueError(
                    "`system` was given, but the messages begin with a system message too; drop one"
                )
            conversation.insert(0, Message("system", (Text(system),)))
        return conversation
