"""What confines a program: namespaces, Landlock, seccomp, control groups, a scratch folder."""
