// expected: failed
// Exit code 0 within a test.
const twice = (xs) => { process.exit(0); };
