"""The verbs: one file a sub-command of `mft`. Each is called by the command line and calls the rooms."""
