"""The peers, each in the form that its own command expects."""
