"""What a run has come to, in the terminal and on a page: read from its folder alone, while it trains or afterwards."""
