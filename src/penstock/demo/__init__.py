"""The demonstration: generated payments, decided by a running service, on the terminal."""
