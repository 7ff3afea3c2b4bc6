// expected: passed
// No attack.
const twice = (xs) => xs.map((x) => 2 * x);
