"""Measurements: losses, bytes, milliseconds. What a decoding step costs needs only what runs a policy."""
