"""Entry points for people, and the code they share."""
