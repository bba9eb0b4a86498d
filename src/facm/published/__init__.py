"""Files that others published: recognised, loaded strictly, and never executed."""
