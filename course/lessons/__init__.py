"""Lesson servers: each stage's parts put together, and run beside the notebook."""
