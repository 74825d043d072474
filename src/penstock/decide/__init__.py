"""Policies: rules over features and a score, with a deadline, a fallback and reasons."""
