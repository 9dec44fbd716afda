"""Settings of ``safework hello``."""

from pydantic import Field

from safework_cli.core.settings import StageConfig


class HelloConfig(StageConfig):
    """Settings of ``safework hello``."""

    greetings: int = Field(2, ge=1, le=100)
    """Rows that are written."""
