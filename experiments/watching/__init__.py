"""What is seen of a plan while it goes: on a terminal, from elsewhere, on a page."""
