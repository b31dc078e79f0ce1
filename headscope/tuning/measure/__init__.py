"""Measuring: what a policy, a head or an option loses on recorded images."""
