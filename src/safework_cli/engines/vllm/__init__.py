"""Generation, scoring and live weights through vLLM: in this process, or on a server."""
