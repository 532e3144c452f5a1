"""Distil a language model into its own INT4 self."""
