"""Models of two transformers that share the noise levels, as Wan 2.2: the teacher that switches, students in pairs."""
