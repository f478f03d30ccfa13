"""What SafiMiddleware is made of: an agent's replies and calls, and what they go through before they leave."""
