"""One self-contained HTML page about a run: figures, curves, pictures with answers, digests, proof, times."""

from mm_llama.report.page import write_report

__all__ = ["write_report"]
