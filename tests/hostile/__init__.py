"""What hostile peers send at a real broker, and what good clients notice of it."""
