# Targets that run as root and need more than the build: set up what is missing, then run.
