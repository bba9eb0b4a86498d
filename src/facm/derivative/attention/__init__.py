"""Attention's value and forward-mode tangent: the plain formula, a fused kernel, and the choice between them."""
