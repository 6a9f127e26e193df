"""Losses and returns as pure functions: tensors in, tensors out; no configuration, no plumbing."""
