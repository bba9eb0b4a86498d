"""What facm check looks at in a network before anything is trained: one file for each question."""
