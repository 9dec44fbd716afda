"""What a run needs before it starts: bytes of each process, time, disk, and the setting that makes a run fit. Imports no torch."""
