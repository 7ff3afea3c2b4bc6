"""Base models: their files, conversion, layers, loading, memory and export."""

from mftcoder.log import silence_libraries

silence_libraries()
