"""Files that are written atomically, SQLite databases, JSON from other programs."""
