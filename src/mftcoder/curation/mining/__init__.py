"""From a folder of code to examples of tasks and an exam."""
