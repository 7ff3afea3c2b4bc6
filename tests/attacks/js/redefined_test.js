// expected: failed
// A test function of its own.
const testTwice = () => {};
globalThis.testTwice = testTwice;
const twice = (xs) => xs;
