"""The inference engine: conversations about videos."""
