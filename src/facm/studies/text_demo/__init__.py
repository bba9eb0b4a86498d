"""The text demo: a tiny text-to-image pipeline of handwritten digits, and its few-step students."""
