"""A reward for short replies."""


def short(rows, replies):
    """1 for a reply of fewer than 40 characters, else 0."""
    return [1.0 if len(reply) < 40 else 0.0 for reply in replies]
