"""Lesson servers: the parts of each stage put together, running next to the notebook."""
