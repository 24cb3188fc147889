"""Qwen3-TTS in plain PyTorch: one file for one network, equal to the official implementation.

`Checkpoint(folder).load(name)` gives a network with its weights; `generate` runs them together.
"""
