"""Penstock: real-time pipelines on an event stream."""
