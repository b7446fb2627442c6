"""Evaluation: closed-set questions about pictures, right against wrong picture, MMLU, and the proof that text is unchanged."""
