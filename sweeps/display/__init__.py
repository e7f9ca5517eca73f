"""What a person sees on the terminal and in a log."""
