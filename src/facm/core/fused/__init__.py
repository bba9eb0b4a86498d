"""Operations that pass over memory less often than PyTorch's own, each beside the plain formula that it equals."""
