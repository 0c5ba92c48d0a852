"""The sources of `hkd.data.loading` by the name that they had first, under which scripts import them."""

from hkd.data.loading.sources import FileSource, MemorySource, Shown

__all__ = ["FileSource", "MemorySource", "Shown"]
