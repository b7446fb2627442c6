"""Evaluation: questions about pictures, right against wrong picture, MMLU, and the proof about text."""
