"""Reinforcement Pre-Training of language models (arXiv 2506.08007)."""

__version__ = "0.1.0"
