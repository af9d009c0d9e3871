"""Texts and answers that nobody should send, and everybody does one day."""
