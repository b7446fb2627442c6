"""Prompts -> tokens -> text: sampling, the engine that extends rows, and text that streams whole characters."""
