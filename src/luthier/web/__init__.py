"""Pages that a person works at, served from this machine: today the side-by-side review of two models' answers."""
