// expected: failed
// Exit code 0 before any test.
process.exit(0);
