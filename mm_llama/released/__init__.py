"""Released Llama 3.2 Vision checkpoints, whole: text core, image adapter and image tower, in and out."""
