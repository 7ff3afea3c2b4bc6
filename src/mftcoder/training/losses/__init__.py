"""The objective of a step."""
