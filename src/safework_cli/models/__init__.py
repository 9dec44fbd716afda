"""Language models for every stage: loading, saving, chat templates, layers, vision."""
