"""The text core: a Llama-architecture decoder that knows nothing of media."""
