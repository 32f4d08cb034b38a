"""`make bench-speed`: our methods beside the paper's loop on the same archives, and beside the machine's limit."""
