"""The Handbook's task in other tools: from Parquet to Parquet, a whole command each."""
