"""The embedded broker: every capability, no server.  On a file (``sqlite:///path``) or in memory (``memory://name``)."""
