"""From prompts and pictures to data that a text-to-image model is trained on: ``facm prepare``."""
