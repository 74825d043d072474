"""The demonstration: generated payments drive a running service, and the terminal shows what it decides."""
