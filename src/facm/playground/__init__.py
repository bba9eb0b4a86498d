"""facm play: a page on this machine to try a trained network by hand."""
