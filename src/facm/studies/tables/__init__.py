"""The studies themselves, one file each: which networks a table or figure of the paper compares."""
