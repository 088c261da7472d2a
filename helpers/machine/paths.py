"""Paths: where the course is, its data, what it makes, and where models are kept."""

import os
from pathlib import Path

import platformdirs

ROOT = Path(__file__).resolve().parents[2]  # the folder of the course
DATA = ROOT / "data"  # the company's handbook and question sets


def build_folder() -> Path:
    """Name the folder for results; the environment variable COURSE_BUILD moves it."""
    return Path(os.environ.get("COURSE_BUILD") or ROOT / "build")


def cache_folder() -> Path:
    """Name the folder for converted models; the environment variable FINETUNING_CACHE moves it."""
    chosen = os.environ.get("FINETUNING_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("finetuning-course")
