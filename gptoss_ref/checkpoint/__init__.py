"""Checkpoints: find, check and map them; convert between layouts."""

from .load import Checkpoint, load_checkpoint
from .locate import cache_folder, cached, download, locate
from .names import LAYOUTS, Layout
from .shards import Shards

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "Layout",
    "Shards",
    "cache_folder",
    "cached",
    "download",
    "load_checkpoint",
    "locate",
]
