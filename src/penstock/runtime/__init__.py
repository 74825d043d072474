"""Joins the stages: pipelines, plans, the gate and its followers, replay."""
