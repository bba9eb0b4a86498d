"""The readers of files from strangers: they refuse what could run code, and are one room to audit."""
