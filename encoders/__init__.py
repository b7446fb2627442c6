"""Encoders turn media into features and know nothing of language."""
