"""The verbs of the command line for Python: train, resume, load, distill. What they share with it is called by both."""
