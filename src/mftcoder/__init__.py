"""mftcoder: multi-task fine-tuning for code language models, and the proof that it worked.

Importing the package imports nothing heavy; each room (see docs/architecture.md) is imported by what needs it.
"""

__version__ = "0.1.0"
