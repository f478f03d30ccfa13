"""The parts of SafiMiddleware: replies, tool calls, approval, and the flow of an agent's run."""
