"""Adapters through which networks of other conventions are seen as velocities F(x, c, cond)."""
