"""What users write about streams: keys, windows, features and expressions."""
