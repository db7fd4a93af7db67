"""The export tasks of one invented wholesaler, and how they were made."""
