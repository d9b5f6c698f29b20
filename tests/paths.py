"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The repository."""

SHARED = ROOT.parent / "shared"
"""Large test data beside the repository; tests that need it skip where it is missing."""
