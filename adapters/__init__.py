"""Adapters: everything that joins media features to the frozen text core."""
