"""The voice: what is written to what is said, and later to phones, prosody and sound (paper section 8.3)."""
