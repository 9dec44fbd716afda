"""How the processes of a stage start: one, or several under torchrun, on one machine or inside a Slurm allocation."""
