"""Luthier fine-tunes language models and proves what the fine-tuning did."""

__version__ = "0.1.0"
