"""The laboratory: speed and quality of bgem3 beside other encoders. Run from the repository, never installed."""
