"""The ground floor: what every other package builds on. It imports nothing else of facm."""
