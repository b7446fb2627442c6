"""Stages: one loop, pure step functions, and what makes a run exact."""
