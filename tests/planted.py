"""A secret that no test may ever make visible."""

from __future__ import annotations

#: Put it wherever a user would put a password.  It holds characters that URLs and shells treat specially.
PLANTED = "pl4nted-s3cret-Zq9x"
