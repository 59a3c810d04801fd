"""Checkpoints: find, check and map them; convert between layouts."""

from gptoss_ref.checkpoint.convert import Conversion, convert
from gptoss_ref.checkpoint.load import Checkpoint, load_checkpoint
from gptoss_ref.checkpoint.locate import cache_folder, cached, download, locate
from gptoss_ref.checkpoint.names import LAYOUTS, Layout
from gptoss_ref.checkpoint.shards import Shards

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
