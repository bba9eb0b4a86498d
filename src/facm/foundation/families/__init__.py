"""Families of pipelines, one file each: how they call their transformer, encode prompts and pictures, and guide."""
