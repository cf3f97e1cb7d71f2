"""`lexiseg serve`: the API, the page, and the queue behind both."""
