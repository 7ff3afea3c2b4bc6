// expected: timeout
// Runs for ever.
const twice = (xs) => { for (;;); };
