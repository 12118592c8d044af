"""From a Graph to a native program: where values stand, which steps move or compute them, and what memory they share."""
