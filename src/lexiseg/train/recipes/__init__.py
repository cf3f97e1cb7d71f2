"""One module per training. Each opens with its command, its hours and the number to expect."""
