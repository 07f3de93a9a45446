"""Entropy of every position of a corpus under a proxy model."""

from forethink.records import read_scored
from forethink.scoring.entropy import Stats, position_stats
from forethink.scoring.local import Scorer, score_documents
from forethink.scoring.stage import run_score

__all__ = ["Scorer", "Stats", "position_stats", "read_scored", "run_score", "score_documents"]
