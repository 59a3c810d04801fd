"""Checkpoints: find, check and map them; convert between layouts."""

from .convert import Conversion, convert
from .load import Checkpoint, load_checkpoint
from .locate import cache_folder, cached, download, locate
from .names import LAYOUTS, Layout
from .shards import Shards

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "Conversion",
    "Layout",
    "Shards",
    "cache_folder",
    "cached",
    "convert",
    "download",
    "load_checkpoint",
    "locate",
]
