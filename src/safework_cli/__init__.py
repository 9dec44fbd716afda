"""Command line, store, data, models, engines, verifiers and training of safework."""

from safework_cli.core.torchvision import watch

watch()
