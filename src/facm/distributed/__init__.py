"""Many processes as one: the only package that imports torch.distributed. Everything else is handed a ``World``."""
