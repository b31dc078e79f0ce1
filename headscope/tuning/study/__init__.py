"""Keeping: studies of measured policies, which go on after a stop and are shared by processes."""
