"""How far what was heard is from what was said: word and character errors, BLEU and chrF, with intervals.

Texts are normalised as in Whisper's evaluation (arXiv 2212.04356, appendix C) first; Chinese, Japanese, Korean and Thai
are counted by character (paper section 8.3). An utterance is the unit of resampling.

Shapes: U utterances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_llama.data.languages import CHARACTER_SCORED

RESAMPLES = 2000
BLEU_RESAMPLES = 1000
INSTALL = 'pip install "mm_llama[eval]"'


@dataclass(frozen=True)
class Edit:
    """One step from what was said to what was heard: `equal`, `substitute`, `delete` or `insert`."""

    op: str
    said: str = ""
    heard: str = ""


@dataclass(frozen=True)
class Utterance:
    """The errors of one utterance; `length` is of what was said, in words or characters."""

    errors: int
    length: int
    edits: tuple[Edit, ...]

    @property
    def rate(self) -> float:
        """Errors per word; of silence in which something was heard, the number of errors."""
        return self.errors / max(1, self.length)


@dataclass(frozen=True)
class ErrorRate:
    """Errors of all utterances by their length, with a 95 % interval over resampled utterances."""

    errors: int
    length: int
    low: float
    high: float
    unit: str = "word"

    @property
    def rate(self) -> float:
        """Errors per word or character."""
        return self.errors / max(1, self.length)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        return {
            "rate": self.rate,
            "errors": self.errors,
            "length": self.length,
            "bootstrap_95": [self.low, self.high],
            "unit": self.unit,
        }

    def __str__(self) -> str:
        name = "WER" if self.unit == "word" else "CER"
        return f"{name} {100 * self.rate:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def normalised(text: str, language: str = "English") -> str:
    """Return a text as Whisper's evaluation compares it: by the rules of English, or the basic ones."""
    found: str = _normaliser(language == "English")(text)
    return " ".join(found.split())


def align(said: str, heard: str, language: str = "English") -> Utterance:
    """Count the fewest edits from `said` to `heard`, both normalised, and say which they are."""
    by_character = language in CHARACTER_SCORED
    first, second = (_units(normalised(text, language), by_character) for text in (said, heard))
    if not first or not second:
        # jiwer refuses an empty reference; what is heard in silence is an insertion all the same.
        edits = (*(Edit("delete", one) for one in first), *(Edit("insert", heard=one) for one in second))
        return Utterance(len(edits), len(first), tuple(edits))
    found = _jiwer().process_words([" ".join(first)], [" ".join(second)])
    steps: list[Edit] = []
    for chunk in found.alignments[0]:
        ours = first[chunk.ref_start_idx : chunk.ref_end_idx]
        theirs = second[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            steps += [Edit("delete", one) for one in ours]
        elif chunk.type == "insert":
            steps += [Edit("insert", heard=one) for one in theirs]
        else:
            steps += [Edit(chunk.type, one, other) for one, other in zip(ours, theirs, strict=True)]
    return Utterance(sum(edit.op != "equal" for edit in steps), len(first), tuple(steps))


def error_rate(utterances: Sequence[Utterance], language: str = "English", *, seed: int = 0) -> ErrorRate:
    """Return the errors of all utterances together. Raises ValueError when there are none."""
    if not utterances:
        raise ValueError("there are no utterances to score")
    errors_U, lengths_U = _counts(utterances)
    drawn = _resampled(len(utterances), seed)
    rates = errors_U[drawn].sum(1) / np.maximum(1, lengths_U[drawn].sum(1))
    low, high = np.quantile(rates, [0.025, 0.975])
    unit = "character" if language in CHARACTER_SCORED else "word"
    return ErrorRate(int(errors_U.sum()), int(lengths_U.sum()), float(low), float(high), unit)


def paired_p(ours: Sequence[Utterance], theirs: Sequence[Utterance], *, seed: int = 0) -> float:
    """Return how likely a difference in error rate at least as large would be by chance (paired bootstrap, two-sided).

    Both are of the same utterances in the same order.
    """
    if len(ours) != len(theirs):
        raise ValueError(
            f"a paired test needs the same utterances: {len(ours)} of one, {len(theirs)} of the other"
        )
    (first_U, length_U), (second_U, _) = _counts(ours), _counts(theirs)
    difference_U = first_U - second_U
    seen = difference_U.sum() / max(1, length_U.sum())
    drawn = _resampled(len(ours), seed)
    shifted = difference_U[drawn].sum(1) / np.maximum(1, length_U[drawn].sum(1)) - seen
    return float((1 + (np.abs(shifted) >= abs(seen)).sum()) / (1 + RESAMPLES))


@dataclass(frozen=True)
class TranslationScore:
    """BLEU and chrF over a corpus (sacrebleu), each with half the width of its 95 % interval (bootstrap)."""

    bleu: float
    bleu_half_width: float
    chrf: float
    chrf_half_width: float

    def to_json(self) -> dict[str, float]:
        """Return the numbers for JSON."""
        return {
            "bleu": self.bleu,
            "bleu_half_width_95": self.bleu_half_width,
            "chrf": self.chrf,
            "chrf_half_width_95": self.chrf_half_width,
        }

    def __str__(self) -> str:
        return f"BLEU {self.bleu:.1f} ± {self.bleu_half_width:.1f}, chrF {self.chrf:.1f} ± {self.chrf_half_width:.1f}"


def translation_score(references: Sequence[str], hypotheses: Sequence[str]) -> TranslationScore:
    """Return BLEU and chrF of translations against one reference each."""
    metrics = _sacrebleu()
    bleu, chrf = (
        _with_half_width(metric, hypotheses, references) for metric in (metrics.BLEU(), metrics.CHRF())
    )
    return TranslationScore(*bleu, *chrf)


def _with_half_width(
    metric: Any, hypotheses: Sequence[str], references: Sequence[str]
) -> tuple[float, float]:
    """Return a corpus score and half the width of its interval over resampled utterances.

    sacrebleu's own bootstrap fails where some resamples score nothing at all.
    """
    score = metric.corpus_score(list(hypotheses), [list(references)]).score
    counts = np.array(metric._extract_corpus_statistics(list(hypotheses), [list(references)]))
    drawn = (counts[rows].sum(0) for rows in _resampled(len(references), 0)[:BLEU_RESAMPLES])
    scores = [float(metric._compute_score_from_stats(one).score) for one in drawn]
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(score), float(high - low) / 2


def chrf_paired_p(
    references: Sequence[str], ours: Sequence[str], theirs: Sequence[str], *, seed: int = 0
) -> float:
    """Return how likely a difference in mean sentence chrF at least as large would be by chance (paired bootstrap)."""
    metric = _sacrebleu().CHRF()

    def scores(hypotheses: Sequence[str]) -> NDArray[np.float64]:
        pairs = zip(hypotheses, references, strict=True)
        return np.array([metric.sentence_score(heard, [said]).score for heard, said in pairs])

    difference_U = scores(ours) - scores(theirs)
    seen = difference_U.mean()
    shifted = difference_U[_resampled(len(references), seed)].mean(1) - seen
    return float((1 + (np.abs(shifted) >= abs(seen)).sum()) / (1 + RESAMPLES))


def _counts(utterances: Sequence[Utterance]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    errors = np.array([utterance.errors for utterance in utterances], dtype=np.int64)
    return errors, np.array([utterance.length for utterance in utterances], dtype=np.int64)


def _resampled(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, count))


def _units(text: str, by_character: bool) -> list[str]:
    return list(text.replace(" ", "")) if by_character else text.split()


@cache
def _normaliser(english: bool) -> Any:
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise ValueError(
            f"texts are normalised with whisper-normalizer, not installed here: {INSTALL}"
        ) from None
    return EnglishTextNormalizer() if english else BasicTextNormalizer()


@cache
def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError:
        raise ValueError(f"errors are counted with jiwer, which is not installed: {INSTALL}") from None
    return jiwer


@cache
def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise ValueError(
            f"translations are scored with sacrebleu, which is not installed: {INSTALL}"
        ) from None
    return metrics
