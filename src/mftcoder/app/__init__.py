"""The verbs: one file per command of `mft`. The command line calls a verb, and a verb calls the packages."""
