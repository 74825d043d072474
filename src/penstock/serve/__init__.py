"""The doors: HTTP in front of the core. The one idea: the door sees bytes, the core sees events."""
