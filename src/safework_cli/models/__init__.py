"""Language models for every stage: loading, chat templates, generation engines. ``engine`` imports no torch; the rest does."""
