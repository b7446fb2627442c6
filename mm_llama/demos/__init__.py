"""Demos: one page each, what a user copies from."""
