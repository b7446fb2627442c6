"""`mm-llama import SRC OUT`: a Meta, GGUF or Hugging Face checkpoint as a Hugging Face folder."""

from __future__ import annotations

from mm_llama.cli.export import add_arguments, write
from mm_llama.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Parse the arguments, write the folder, say what is in it."""
    parser = Parser(
        prog="mm-llama import",
        description="Turn a checkpoint (Hugging Face, Meta or GGUF; vision checkpoints whole) into a Hugging Face "
        "folder.",
    )
    parser.add_argument("source", metavar="SRC", help="folder or .gguf file")
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer.json, tokenizer.model or a folder")
    parser.add_argument(
        "--chat",
        choices=("llama3", "chatml", "plain"),
        help="chat format, where the checkpoint does not tell (Meta's folders: by 'instruct' in the name)",
    )
    add_arguments(parser)
    options = parser.parse_args(argv)
    return write(options.source, options, tokenizer=options.tokenizer, chat=options.chat)
