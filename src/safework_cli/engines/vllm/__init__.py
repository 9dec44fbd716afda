"""Generation and scoring through vLLM in this process."""
